"""A run as a process: command line, checks of options, files, run folder, signals, device, several processes."""
