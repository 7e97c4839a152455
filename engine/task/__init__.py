"""Tasks and labels.json, tagging schemes, extra columns, texts and their tokens."""
