"""Exchanges with nodes: sent when a node has room, again where that is allowed, and given up in time."""
