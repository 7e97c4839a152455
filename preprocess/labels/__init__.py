"""Infers the kind of task and the tag scheme of each label column, and converts and checks labels."""
