"""The machinery behind training; fine-tuning requires no edits here. Imports nothing from the top level, preprocess/
or tools/.

Packages, each importing only those before it: task, run, model, data, predict, train, tricks.
"""
