"""Converts raw files to a checked, split folder: readers, labels, splits, checks, schema. Imports only engine/."""
