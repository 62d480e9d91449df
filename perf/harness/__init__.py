"""The common parts of all measurements: agents, clusters for them, child processes, times, the disk."""
