"""Serves an exported model over HTTP (docs/serving.md)."""
