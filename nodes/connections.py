"""Which connection is a client's present one: pure.

A router that lost its connection opens a new one, and sends again there what may be sent again. What it gave up is not
to be done any more once it has come to another: a save that waited on the old connection would undo a later one that
came on the new. So a node forgets a client's earlier connection, and what waits there, when the client says Hello anew.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Connections"]

_CLIENT_BYTES: Final = 8
"""A router's own name is 8 random bytes; what has another length may not be one client's alone."""


class Connections:
    """The connection, by its identity on the ROUTER socket, of each client that said its name."""

    def __init__(self) -> None:
        self._peers: dict[bytes, bytes] = {}
        self._clients: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def renew(self, client: bytes, peer: bytes) -> bytes | None:
        """A client says Hello on a connection; return its earlier one, if it had another."""
        if len(client) != _CLIENT_BYTES:
            return None
        before = self._peers.get(client)
        if self._clients.get(peer, client) != client:  # it had another name on this very connection
            self.forget(peer)
        self._peers[client] = peer
        self._clients[peer] = client
        if before is None or before == peer:
            return None
        self._clients.pop(before, None)
        return before

    def forget(self, peer: bytes) -> None:
        """A connection is forgotten."""
        client = self._clients.pop(peer, None)
        if client is not None and self._peers.get(client) == peer:
            del self._peers[client]
