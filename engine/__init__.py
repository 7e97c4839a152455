"""The machinery behind training, which fine-tuning does not require editing. Imports nothing from the top level,
preprocess/ or tools/.

Packages, each importing only those before it: task, run, model, data, predict, train, tricks.
"""
