"""Exports a checkpoint as a folder that labels texts without torch: docs/export.md."""
