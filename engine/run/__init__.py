"""Everything around training: command line, option checks, files, run folder, signals, device, distributed runs."""
