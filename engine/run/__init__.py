"""The run as a process: command line, option checks, files, run folder, signals, device, several processes."""
