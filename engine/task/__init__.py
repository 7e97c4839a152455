"""What labels.json describes of a task: tags, extra columns, text and its tokens."""
