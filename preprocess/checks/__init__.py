"""Data checks: duplicates, texts, labels, entities and tokenization."""
