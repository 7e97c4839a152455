"""What a training run keeps and sets: checkpoints, parameter groups, automatic settings, progress."""
