"""Hyperparameter search: the search space, Optuna's study, the runs of both stages, and the results."""
