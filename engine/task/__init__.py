"""Tasks, as labels.json describes them: tags, extra columns, text and its tokens."""
