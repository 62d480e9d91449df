"""Sockets on an event loop, and who is alive at the other end; nothing here knows of agents."""
