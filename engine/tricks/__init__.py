"""Building blocks of tricks.py: hooks, perturbations, weight averaging, few-label tricks, teachers and soft targets."""
