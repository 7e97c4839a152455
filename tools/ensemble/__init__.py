"""Several trained runs as one model, and which of them are worth it: docs/ensemble.md."""
