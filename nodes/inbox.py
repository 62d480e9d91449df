"""Requests of a node's peers that are not done yet.

A frame that was drained from the socket is judged here before it may wait: it may be a Cancel, which takes effect at
once; or its peer may have so much waiting that it had better be told. When its turn comes, its deadline is known: the
budget that it came with, less what it lost on its way (`queueing_delay`). Work that is over its deadline by then is
dropped by whoever takes it, unread.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from ..wire.errors import ProtocolError
from ..wire.protocol.messages import Cancel, Fetch, Scan, decode_request
from ..wire.protocol.request_header import is_cancel, peek_request
from ..wire.transport.connections import Connections
from ..wire.transport.counters import Counters
from ..wire.transport.fair_queue import FairQueue
from ..wire.transport.queueing_delay import QueueWaits, TransitDelays
from .read_path import Read

__all__ = ["Inbox", "Reading", "Received", "Shed", "Work"]

_CANCELLABLE: Final = {Fetch.__struct_config__.tag, Scan.__struct_config__.tag}

_CANCEL_BYTES_MAX: Final = 4_096
"""CANCEL_NUMBERS_MAX numbers of nine bytes, and room: a drain of 256 of them then takes 2 ms."""

_FULL_RETRY_S: Final = 0.05
"""How long a router is asked to stay away whose queue here is full: about what a full queue of small reads takes."""


class Received(NamedTuple):
    """A frame, and when it was drained, in seconds of the monotonic clock."""

    frame: bytes
    drained: float


class Reading(NamedTuple):
    """A fetch with frames still to come."""

    frame: bytes
    read: Read
    deadline: float


Work: TypeAlias = Received | Reading


class Shed(NamedTuple):
    """Why a frame may not wait, and for how many seconds its peer had better send nothing."""

    detail: str
    retry_after_s: float


class Inbox:
    """Work of every welcomed peer, served in turn. Times in seconds of the monotonic clock."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._queue: FairQueue[Work] = FairQueue()
        self._delays = TransitDelays()
        self._waits = QueueWaits()
        self._cancels: dict[bytes, list[bytes]] = {}
        self._connections = Connections()
        self.fresh = self._connections.fresh
        self.handle_first_request = self._connections.handle_request
        self.block = self._queue.block
        self.unblock = self._queue.unblock
        self.put_back = self._queue.put_back

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._queue

    def add_peer(self, peer: bytes, client: bytes = b"") -> None:
        """Begin to keep work for a peer, a connection of this client."""
        self._queue.add_peer(peer)
        self._connections.handle_hello(client, peer)

    def remove_peer(self, peer: bytes) -> int:
        """Forget a peer; return how many pieces of its work went with it."""
        self._connections.forget(peer)
        self._delays.remove_peer(peer)
        self._waits.remove_peer(peer)
        return self._queue.remove_peer(peer)

    def put(self, peer: bytes, frame: bytes, drained: float) -> Shed | None:
        """Take in a known peer's frame; return why it may not wait, None where it may or is done with."""
        if is_cancel(frame):
            self._cancels.setdefault(peer, []).append(frame)
            return None
        if peer in self._waits:
            seen = peek_request(frame)
            retry_after_s = self._waits.retry_after_s(peer, seen[2] / 1e6) if seen else 0.0
            if retry_after_s:
                return Shed("the node is too far behind to answer in time", retry_after_s)
        if not self._queue.put(peer, Received(frame, drained), len(frame)):
            return Shed("too many of your requests wait here", _FULL_RETRY_S)
        return None

    def take(self, now: float) -> tuple[bytes, Work, int] | None:
        """Return (peer, work, size) of the peer whose turn it is, None where nothing can be done now."""
        taken = self._queue.take()
        if taken is not None:
            peer, work, _size = taken
            if isinstance(work, Received):
                self._waits.handle_taken(peer, now - work.drained, self._queue.waiting(peer))
        return taken

    def deadline(self, peer: bytes, received: Received, budget_us: int, sent_us: int) -> float:
        """Return when a request's budget is spent."""
        return received.drained - self._delays.queued_s(peer, sent_us, received.drained) + budget_us / 1e6

    def handle_drained(self) -> None:
        """All that was drained is put: drop what was cancelled, in one look at each peer's queue."""
        if not self._cancels:
            return
        cancels, self._cancels = self._cancels, {}
        for peer, frames in cancels.items():
            numbers = frozenset([number for frame in frames for number in self._cancelled_by(frame)])

            def is_unwanted(work: Work, numbers: frozenset[int] = numbers) -> bool:
                if isinstance(work, Reading):
                    return work.read.request in numbers
                seen = peek_request(work.frame)
                return seen is not None and seen[0] in _CANCELLABLE and seen[1] in numbers

            self._counters.cancelled += self._queue.discard(peer, is_unwanted)
            if not self._queue.waiting(peer):
                self._waits.remove_peer(peer)  # nothing will be taken that could say that it is no longer behind

    def _cancelled_by(self, frame: bytes) -> list[int]:
        try:
            if len(frame) > _CANCEL_BYTES_MAX:
                raise ProtocolError("a Cancel is small")
            cancel = decode_request(frame)
        except ProtocolError:
            self._counters.garbage += 1
            return []
        assert isinstance(cancel, Cancel), "its tag says so"
        return cancel.requests
