"""Combines several trained runs into one model and measures which runs help (docs/ensemble.md)."""
