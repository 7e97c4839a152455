"""Tasks and labels.json, tagging schemes, label hierarchies, texts and their tokens."""
