"""What tools.search is made of: the space of options, Optuna's study, the runs of both stages, and what comes out."""
