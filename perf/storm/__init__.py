"""Wakes of thousands of agents at once, beside Redis and raw ZeroMQ."""
