"""Wakes: planned, fetched from all stores at once, gathered, and shown as the states of agents."""
