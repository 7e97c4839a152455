"""What tricks.py builds on: the hooks, perturbations, weight averages, teachers and their soft targets."""
