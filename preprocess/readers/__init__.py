"""Reads raw files: finds them, decides on their format and columns, and yields examples."""
