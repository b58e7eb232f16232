"""The terminal: progress bars, exit status."""
