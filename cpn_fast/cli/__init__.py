"""The command line, `cpn COMMAND ...`."""
