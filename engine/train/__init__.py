"""Training internals: checkpoints, parameter groups, automatic settings, progress."""
