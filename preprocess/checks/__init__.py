"""Data checks: duplicates, texts, labels, entities, and what the tokenizer makes of the texts."""
