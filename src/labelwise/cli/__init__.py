"""The command line: parses, calls `labelwise.run`, prints. One file for each group of commands."""
