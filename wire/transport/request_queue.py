"""Requests of a server's peers that are not done yet: pure.

A frame that was drained from the socket is judged here before it may wait: it may be a Cancel, which takes effect at
once; or its peer may have so much waiting that it is rejected. When its turn comes, its deadline is known: the
budget that it came with, less what it lost on its way (`queueing_delay`). A request that is past its deadline by then
is dropped by the server, unread.

A request is in one of three places: in its peer's queue, served (taken, and in the server's hands alone), or
parked until something else resumes it. A parked request still counts as one of those that its peer has waiting.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from ..errors import ProtocolError
from ..protocol.frame_peek import is_cancel, peek_request
from ..protocol.messages import Cancel, decode_request
from .connections import Connections
from .counters import ServerCounters
from .fair_queue import PEER_QUEUE_BYTES_MAX, PEER_QUEUE_LENGTH_MAX, FairQueue
from .queueing_delay import QueueWaits, TransitDelays

__all__ = ["Call", "Frames", "RequestQueue", "Shed"]

_CANCEL_BYTES_MAX: Final = 4_096
"""CANCEL_NUMBERS_MAX numbers of nine bytes, and room: a drain of 256 of them then takes 2 ms."""

_FULL_RETRY_S: Final = 0.05
"""The time for which a peer whose queue is full is asked to send nothing: about that of a full queue of small reads."""


class Frames(Protocol):
    """An answer that is made a frame at a time: what a handler returns for a request that is not answered at once."""

    def next_frame(self, call: Call, /) -> tuple[bytes, bool] | None:
        """Return the next frame and whether it was the last, or None to park the call until it is resumed.

        Raises:
            InvalidRequestError: the request cannot be answered; its peer gets the reason.
        """
        ...


class Call:
    """One request of a peer, from when its frame was drained to its last answer. Times in seconds, monotonic."""

    __slots__ = ("abandoned", "deadline", "drained", "frame", "frames", "number", "peer")

    def __init__(self, peer: bytes, frame: bytes, drained: float) -> None:
        self.peer = peer
        self.frame = frame
        self.drained = drained
        self.number = 0
        """The request's number: known, as its deadline, when it is decoded in its first turn."""
        self.deadline = 0.0
        self.frames: Frames | None = None
        """The source of its frames, if there is more than one answer at once."""
        self.abandoned = False
        """Set if no answer is to be sent any more, while it was parked; may be read in any thread."""


class Shed(NamedTuple):
    """Why a frame may not wait, and for how many seconds its peer should send nothing."""

    detail: str
    retry_after_s: float


class RequestQueue:
    """Requests of every welcomed peer, served in turn. Times in seconds of the monotonic clock."""

    def __init__(
        self,
        counters: ServerCounters,
        cancellable: frozenset[int],
        *,
        length_max: int = PEER_QUEUE_LENGTH_MAX,
        bytes_max: int = PEER_QUEUE_BYTES_MAX,
    ) -> None:
        """Make it. `cancellable`: tags of the requests that a Cancel may name; the limits are for each peer."""
        self._counters = counters
        self._cancellable = cancellable
        self._queue: FairQueue[Call] = FairQueue(length_max=length_max, bytes_max=bytes_max)
        self._delays = TransitDelays()
        self._waits = QueueWaits()
        self._cancels: dict[bytes, list[bytes]] = {}
        self._parked: dict[bytes, set[Call]] = {}
        self._connections = Connections()
        self.fresh = self._connections.fresh
        self.handle_first_request = self._connections.handle_request
        self.block = self._queue.block
        self.unblock = self._queue.unblock

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._queue

    def add_peer(self, peer: bytes, client: bytes = b"") -> None:
        """Begin to keep requests of a peer, a connection of this client."""
        self._queue.add_peer(peer)
        self._connections.handle_hello(client, peer)

    def remove_peer(self, peer: bytes) -> int:
        """Forget a peer; return how many of its requests went with it."""
        self._connections.forget(peer)
        self._delays.remove_peer(peer)
        self._waits.remove_peer(peer)
        unanswered = 0
        for call in self._parked.pop(peer, ()):
            unanswered += not call.abandoned
            call.abandoned = True
        return self._queue.remove_peer(peer) + unanswered

    def put(self, peer: bytes, frame: bytes, drained: float) -> Shed | None:
        """Receive a known peer's frame; return why it may not wait, None if it may or is done with."""
        if is_cancel(frame):
            self._cancels.setdefault(peer, []).append(frame)
            return None
        if peer in self._waits:
            seen = peek_request(frame)
            retry_after_s = self._waits.retry_after_s(peer, seen[2] / 1e6) if seen else 0.0
            if retry_after_s:
                return Shed("the node is too far behind to answer in time", retry_after_s)
        if not self._queue.put(peer, Call(peer, frame, drained), len(frame)):
            return Shed("too many of your requests wait here", _FULL_RETRY_S)
        return None

    def take(self, now: float) -> Call | None:
        """Return a request of the peer whose turn it is, None if nothing can be done now."""
        taken = self._queue.take()
        if taken is None:
            return None
        call = taken[1]
        if call.frames is None:
            self._waits.handle_taken(call.peer, now - call.drained, self._queue.waiting(call.peer))
        return call

    def put_back(self, call: Call) -> None:
        """Queue a request that has frames to come, before everything else of its peer, for the peer's next turn."""
        self._queue.put_back(call.peer, call, len(call.frame))

    def deadline(self, call: Call, budget_us: int, sent_us: int) -> float:
        """Return when a request's budget is spent."""
        return call.drained - self._delays.queued_s(call.peer, sent_us, call.drained) + budget_us / 1e6

    # --- parked requests ---

    def park(self, call: Call) -> None:
        """Keep a request that was taken, and its place, until it is resumed; of a peer that is gone, abandon it."""
        if call.peer not in self._queue:
            call.abandoned = True
            return
        self._queue.hold(call.peer, len(call.frame))
        self._parked.setdefault(call.peer, set()).add(call)

    def resume(self, call: Call) -> bool:
        """Put a parked request back into its queue; return False if its peer no longer waits for it."""
        parked = self._parked.get(call.peer)
        if parked is None or call not in parked:
            return False  # its place was freed with its peer
        parked.remove(call)
        if not parked:
            del self._parked[call.peer]
        self._queue.release(call.peer, len(call.frame))
        if call.abandoned:
            return False
        self.put_back(call)
        return True

    def abandon_parked(self) -> None:
        """Abandon every parked request: the server stops."""
        for parked in self._parked.values():
            for call in parked:
                call.abandoned = True
        self._parked.clear()

    # --- cancels ---

    def handle_drained(self) -> None:
        """Drop the cancelled requests once a drain is put, in one look at each peer's requests."""
        if not self._cancels:
            return
        cancels, self._cancels = self._cancels, {}
        for peer, frames in cancels.items():
            numbers = frozenset([number for frame in frames for number in self._cancelled_by(frame)])

            def is_unwanted(call: Call, numbers: frozenset[int] = numbers) -> bool:
                seen = peek_request(call.frame)
                return seen is not None and seen[0] in self._cancellable and seen[1] in numbers

            self._counters.cancelled += self._queue.discard(peer, is_unwanted)
            for call in self._parked.get(peer, ()):
                if not call.abandoned and is_unwanted(call):
                    call.abandoned = True  # resuming it frees its place
                    self._counters.cancelled += 1
            if not self._queue.waiting(peer):
                self._waits.remove_peer(peer)  # nothing will be taken that could say that it is no longer behind

    def _cancelled_by(self, frame: bytes) -> list[int]:
        try:
            if len(frame) > _CANCEL_BYTES_MAX:
                raise ProtocolError("a Cancel is small")
            cancel = decode_request(frame)
        except ProtocolError:
            self._counters.malformed_frames += 1
            return []
        assert isinstance(cancel, Cancel), "its tag says so"
        return cancel.requests
