"""The model checks of `main.py --debug` (docs/checking.md)."""
