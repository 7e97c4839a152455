"""Hyperparameter search: the search space, the Optuna study, the runs of both stages, and the results."""
