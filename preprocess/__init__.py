"""Converts raw files to a checked, split folder. Each module or package imports only engine/ and those before it:
example, storage, labels, schema, readers, splits, checks, prepared."""
