"""Sockets on an event loop, and the liveness of the other end; nothing here knows of agents."""
