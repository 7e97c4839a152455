"""Commands to use before and after training, each run as `python -m tools.NAME`. main.py does not need this folder."""
