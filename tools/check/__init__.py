"""Checks an edited model for `main.py --debug`: docs/checking.md."""
