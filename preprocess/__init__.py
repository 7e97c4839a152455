"""Raw files to a checked, split folder: readers, labels, splits, checks, the folder's schema. Imports only engine/."""
