"""An exported model over HTTP: docs/serving.md."""
