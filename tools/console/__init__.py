"""The terminal as all commands use it: options, output, tables, a loop to run in."""
