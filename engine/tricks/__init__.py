"""Building blocks of tricks.py: hooks, perturbations, weight averages, teachers and soft targets."""
