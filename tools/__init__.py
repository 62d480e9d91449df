"""The command line: one module per family of commands, each loaded only when it is called."""
