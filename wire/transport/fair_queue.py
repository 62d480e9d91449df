"""Work that waits at a node, fair between peers: pure.

One queue per peer, served in turn, one piece of work each, so that one peer's storm does not delay another's single
wake. Each peer's queue is bounded in pieces and bytes; a peer that does not take its replies is blocked, and waits
without any other peer waiting for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

__all__ = ["PEER_QUEUE_BYTES_MAX", "PEER_QUEUE_LENGTH_MAX", "FairQueue"]

PEER_QUEUE_LENGTH_MAX: Final = 1_024
"""Requests of one peer that may wait. A router's window keeps it at a few dozen; more is a client out of control."""

PEER_QUEUE_BYTES_MAX: Final = 16 << 20
"""Bytes of one peer's waiting requests: sixteen batches of writes."""

T = TypeVar("T")


class _PeerQueue(Generic[T]):
    __slots__ = ("blocked", "bytes", "held", "peer", "pieces", "takes_turns")

    def __init__(self, peer: bytes) -> None:
        self.peer = peer
        self.pieces: deque[tuple[T, int]] = deque()  # work and its size
        self.bytes = 0
        self.held = 0  # pieces that are elsewhere, and count as if they waited here
        self.blocked = False
        self.takes_turns = False  # whether it is among the turns: never twice, or it would have two a round


class FairQueue(Generic[T]):
    """Queues of work by peer; `take` goes round the peers that have work and are not blocked."""

    def __init__(self, *, length_max: int = PEER_QUEUE_LENGTH_MAX, bytes_max: int = PEER_QUEUE_BYTES_MAX) -> None:
        """Make it; the limits are for each peer."""
        self._length_max = length_max
        self._bytes_max = bytes_max
        self._queues: dict[bytes, _PeerQueue[T]] = {}
        self._turns: deque[_PeerQueue[T]] = deque()

    def add_peer(self, peer: bytes) -> None:
        """Begin to keep work for a peer; one that is known keeps its queue."""
        if peer not in self._queues:
            self._queues[peer] = _PeerQueue(peer)

    def remove_peer(self, peer: bytes) -> int:
        """Forget a peer; return how many pieces of work went with it."""
        queue = self._queues.pop(peer, None)
        if queue is None:
            return 0
        dropped = len(queue.pieces)
        queue.pieces.clear()  # it may still be among the turns
        return dropped

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._queues

    def __len__(self) -> int:
        return len(self._queues)

    def put(self, peer: bytes, work: T, size: int) -> bool:
        """Queue a known peer's work of `size` bytes; return False if its queue is full, and nothing is queued."""
        queue = self._queues[peer]
        if len(queue.pieces) + queue.held >= self._length_max or queue.bytes + size > self._bytes_max:
            return False
        queue.pieces.append((work, size))
        queue.bytes += size
        self._give_turns(queue)
        return True

    def put_back(self, peer: bytes, work: T, size: int) -> None:
        """Queue work that was taken and is not done, before everything else of its peer, for the peer's next turn."""
        queue = self._queues.get(peer)
        if queue is None:
            return
        queue.pieces.appendleft((work, size))
        queue.bytes += size
        self._give_turns(queue)

    def waiting(self, peer: bytes) -> int:
        """Return how many pieces of a peer's work wait."""
        queue = self._queues.get(peer)
        return len(queue.pieces) if queue is not None else 0

    def discard(self, peer: bytes, unwanted: Callable[[T], bool]) -> int:
        """Drop those pieces of a peer's work that are no longer wanted; return how many."""
        queue = self._queues.get(peer)
        if queue is None:
            return 0
        kept: deque[tuple[T, int]] = deque()
        for work, size in queue.pieces:
            if unwanted(work):
                queue.bytes -= size
            else:
                kept.append((work, size))
        dropped = len(queue.pieces) - len(kept)
        queue.pieces = kept
        return dropped

    def hold(self, peer: bytes, size: int) -> None:
        """Count a known peer's work that was taken and continues elsewhere as if it waited here, until `release`."""
        queue = self._queues[peer]
        queue.held += 1
        queue.bytes += size

    def release(self, peer: bytes, size: int) -> None:
        """Count such a piece of work no longer."""
        queue = self._queues[peer]
        queue.held -= 1
        queue.bytes -= size

    def take(self) -> tuple[bytes, T, int] | None:
        """Return (peer, work, size) of the peer whose turn it is, None if nothing can be done now."""
        while self._turns:
            queue = self._turns.popleft()
            queue.takes_turns = False
            if queue.blocked or not queue.pieces:
                continue
            work, size = queue.pieces.popleft()
            queue.bytes -= size
            self._give_turns(queue)
            return queue.peer, work, size
        return None

    def block(self, peer: bytes) -> None:
        """Let a peer's work wait until `unblock`."""
        queue = self._queues.get(peer)
        if queue is not None:
            queue.blocked = True

    def unblock(self, peer: bytes) -> None:
        """Serve a peer again."""
        queue = self._queues.get(peer)
        if queue is not None and queue.blocked:
            queue.blocked = False
            self._give_turns(queue)

    def _give_turns(self, queue: _PeerQueue[T]) -> None:
        if queue.pieces and not queue.blocked and not queue.takes_turns:
            queue.takes_turns = True
            self._turns.append(queue)
