"""Faults that are done to a running cluster, each for as long as a block runs, and undone however the block ends."""
