"""Selects the texts of an unlabelled file that are worth labelling next (docs/select.md)."""
