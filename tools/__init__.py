"""Commands around a training run, each `python -m tools.NAME`. main.py works without this folder."""
