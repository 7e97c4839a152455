"""What training needs and nobody opens in order to fine-tune. Imports nothing from the top level, preprocess/ and
tools/.

Packages, each of which imports only those before it: task, run, model, data, predict, train, tricks.
"""
