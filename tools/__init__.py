"""Commands for work before and after training, run as `python -m tools.NAME`. main.py works without this folder."""
