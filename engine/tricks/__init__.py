"""Building blocks of tricks.py: the hooks, perturbations, weight averages, teachers and their soft targets."""
