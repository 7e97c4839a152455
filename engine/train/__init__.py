"""Training internals: checkpoints, parameter groups, automatic options, progress."""
