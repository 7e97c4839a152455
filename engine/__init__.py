"""Machinery that nobody opens in order to fine-tune. Imports nothing from the top level and nothing from
preprocess/."""
