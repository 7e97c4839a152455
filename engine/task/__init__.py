"""What labels.json says about a task: tags, extra columns, text and its tokens."""
