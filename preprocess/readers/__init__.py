"""Finds raw files, detects their formats and columns, and yields examples."""
