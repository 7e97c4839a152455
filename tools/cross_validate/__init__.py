"""Trains and scores every fold of a cross-validation (docs/folds.md)."""
