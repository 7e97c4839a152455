"""Combines several trained runs into one model and measures which of them help: docs/ensemble.md."""
