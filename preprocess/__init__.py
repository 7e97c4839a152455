"""Raw files to a checked, split folder: readers, labels, splits, checks, and that folder's schema. Imports engine/
alone."""
