"""Exports a checkpoint to a folder that labels texts without torch (docs/export.md)."""
