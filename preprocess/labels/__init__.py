"""Finds out what each label column is (kind of task, tag scheme, values), and converts and checks labels."""
