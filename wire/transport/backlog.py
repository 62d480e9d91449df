"""The backlog of a node, for each peer: pure.

Work waits in a queue for its peer's turn. How long the last piece waited tells what the next one has to expect; a
request that has less time than that had better be told at once (OVERLOADED) than be dropped unread when its turn comes.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Backlog"]

_RETRY_SHARE: Final = 0.5
"""Of the wait, how long a router is asked to leave the node alone: by then half of the queue is done."""


class Backlog:
    """The wait of each peer that has work queued, in seconds."""

    def __init__(self) -> None:
        self._waits_s: dict[bytes, float] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._waits_s

    def handle_taken(self, peer: bytes, waited_s: float, left: int) -> None:
        """A piece of a peer's work is taken up after so long; `left` are queued still."""
        if left:
            self._waits_s[peer] = waited_s
        else:
            self._waits_s.pop(peer, None)

    def retry_after_s(self, peer: bytes, budget_s: float) -> float:
        """Return 0 where a request with this budget may wait, else how long its router had better stay away."""
        wait_s = self._waits_s.get(peer, 0.0)
        return wait_s * _RETRY_SHARE if wait_s > budget_s else 0.0

    def remove_peer(self, peer: bytes) -> None:
        """Forget a peer."""
        self._waits_s.pop(peer, None)
