"""Saves: named for good, brought together, committed in order."""
