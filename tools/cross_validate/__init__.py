"""Trains and scores every fold: docs/folds.md."""
