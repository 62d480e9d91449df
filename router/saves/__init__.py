"""Saves: identified by tokens, coalesced, and committed in order."""
