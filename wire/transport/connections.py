"""The present connection of each client: pure.

A router that lost its connection opens a new one, and repeats there the requests that may be repeated. The ones that it
abandoned must not be done later: a save that waited on the old connection would undo a later one that came on the new.
So a node forgets a client's earlier connection, and the requests queued there, with the first request on its new one.
Not with its Hello: a router tries a fresh connection beside one on which the node was silent, and stays with the old
one if that says something after all (docs/decisions/0008).
"""

from __future__ import annotations

from typing import Final

__all__ = ["Connections"]

_CLIENT_BYTES: Final = 8
"""A router's own name is 8 random bytes; one of another length may not be one client's alone."""


class Connections:
    """The connection, by its identity on the ROUTER socket, of each client that said its name."""

    def __init__(self) -> None:
        self._peers: dict[bytes, bytes] = {}  # by client the one in use
        self._clients: dict[bytes, bytes] = {}
        self.fresh: set[bytes] = set()
        """Connections of clients that have another one in use, and have said nothing but Hello on this one."""

    def __len__(self) -> int:
        return len(self._peers)

    def handle_hello(self, client: bytes, peer: bytes) -> None:
        """Record the Hello of a client on a connection."""
        if len(client) != _CLIENT_BYTES:
            return
        if self._clients.get(peer, client) != client:  # it had another name on this very connection
            self.forget(peer)
        self._clients[peer] = client
        if self._peers.setdefault(client, peer) == peer:
            self.fresh.discard(peer)  # the one before it was forgotten, and this one says Hello again
        else:
            self.fresh.add(peer)

    def handle_request(self, peer: bytes) -> bytes | None:
        """Record that a client uses a fresh connection; return its earlier one, None if that is forgotten already."""
        self.fresh.discard(peer)
        client = self._clients[peer]
        before = self._peers.get(client)
        self._peers[client] = peer
        if before is not None:
            del self._clients[before]
        return before

    def forget(self, peer: bytes) -> None:
        """Remove a connection."""
        self.fresh.discard(peer)
        client = self._clients.pop(peer, None)
        if client is not None and self._peers.get(client) == peer:
            del self._peers[client]
