"""What all commands share at the terminal: options, output, tables, running in a loop."""
