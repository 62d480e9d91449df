"""The routers that a node has welcomed, and the replies that wait for them.

A peer is known by the identity that its connection has on the ROUTER socket. A reply that its queue in the socket has
no room for waits here, and the peer's work with it; no other peer's does. The bytes that one peer can make a node hold
are bounded by PEER_BYTES_MAX.

A peer that has said nothing for a while is silent (`wire.transport.liveness`): a frame that cannot be delivered
to it shows that its connection is gone. One that is silent, has replies waiting and takes none is forgotten too:
libzmq's thread takes them also while a router's loop is busy, so that it was stopped or cut off. If it comes back it
has to say Hello again.

When a connection ends libzmq says so, but not whose it was. So peers that have been quiet for a moment are then
asked sooner, but never often: a process that was stopped for long shall not find thousands of questions.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..protocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_TARGET, IMAGE_BYTES_MAX
from ..protocol.messages import PONG
from .channel import DRAIN_BYTES_MAX, Sender, Sent
from .counters import ServerCounters
from .fair_queue import PEER_QUEUE_BYTES_MAX
from .liveness import SILENT_TICKS, Silence, is_asked
from .sockets import NODE_RECEIVE_FRAMES_MAX, NODE_SEND_FRAMES_MAX

__all__ = ["PEERS_MAX", "PEER_BYTES_MAX", "Peers"]

PEERS_MAX: Final = 4_096
"""Routers that a node knows at once; beyond it one that is silent has to say Hello again, and if none is, a new one
is asked to come later: were another sent away for it, thousands would send each other away all the time."""

_WAITING_BYTES_MAX: Final = 32 << 20
"""Replies that wait for a peer beside its socket: one of reads, and those of the writer, which answers hundreds of
small saves at once; replies beyond that are dropped."""

_ENDED_TICKS: Final = 2
"""Ticks after a connection's end in which its peer may still count as heard, or has been quiet for one only."""

_SEARCHED_TICKS: Final = range(2, SILENT_TICKS + 3)
"""Ticks of silence in which a peer is asked at once when a connection has ended. The kernel ends that of a host which
was cut off 3 to 4 s after its last word, if nothing is on its way there."""

_FRAME_OBJECT_BYTES: Final = 64
"""Bytes of a waiting frame beside its own: its object's head and its place in the queue."""

PEER_BYTES_MAX: Final = (
    NODE_RECEIVE_FRAMES_MAX * FRAME_BYTES_MAX
    + (DRAIN_BYTES_MAX + FRAME_BYTES_MAX)
    + PEER_QUEUE_BYTES_MAX
    + (NODE_SEND_FRAMES_MAX + 1) * max(FRAME_BYTES_TARGET, IMAGE_BYTES_MAX)
    + _WAITING_BYTES_MAX
)
"""The most that a peer which sends without end and never reads can make a node hold, in bytes: 154 MiB, if its
requests have the largest size, every reply is one largest image, and hundreds of thousands of its saves are answered;
17 MiB with small requests for agents of ordinary size. Saves that wait for the disk come on top, bounded for all peers
together (`nodes.group_commit`)."""


class _Waiting:
    """Replies that wait for one peer."""

    __slots__ = ("bytes", "frames", "silence", "stuck_ticks")

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.bytes = 0
        self.silence = Silence()
        self.stuck_ticks = 0  # that none of them was taken

    def add(self, frame: bytes) -> bool:
        """Keep a frame; return False if too much waits already."""
        size = len(frame) + _FRAME_OBJECT_BYTES
        if self.bytes + size > _WAITING_BYTES_MAX:
            return False
        self.frames.append(frame)
        self.bytes += size
        return True

    def remove_first(self) -> None:
        """Let the first frame go: it was sent."""
        self.bytes -= len(self.frames.popleft()) + _FRAME_OBJECT_BYTES
        self.stuck_ticks = 0


class Peers:
    """Welcomed peers by identity, and their waiting replies."""

    def __init__(self, sender: Sender, counters: ServerCounters, *, peers_max: int = PEERS_MAX) -> None:
        self._sender = sender
        self._counters = counters
        self._peers_max = peers_max
        self._waiting: dict[bytes, _Waiting] = {}
        self.blocked: set[bytes] = set()
        self.heard: set[bytes] = set()
        """The peers that have said something since the last tick."""
        self.silent = 0
        """The number of peers that were silent at the last tick."""
        self._ended_ticks = 0

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, peer: bytes) -> None:
        """Welcome a peer."""
        self.heard.add(peer)
        if peer not in self._waiting:
            self._waiting[peer] = _Waiting()

    def make_room(self) -> bytes | None:
        """Forget the peer that has been silent longest, if there are as many as may be; return it, None for none."""
        if len(self._waiting) < self._peers_max:
            return None
        silent = max(self._waiting, key=lambda peer: self._waiting[peer].silence.ticks)
        if self._waiting[silent].silence.ticks < SILENT_TICKS:
            return None
        self.remove(silent)
        return silent

    @property
    def is_full(self) -> bool:
        """Whether there are as many as may be."""
        return len(self._waiting) >= self._peers_max

    def why_full(self) -> str:
        """Return why a router is not accepted, and what to do."""
        return f"this node takes no more clients: it has {self._peers_max:,}, as many as one node may have; use fewer"

    def handle_tick(self) -> list[bytes]:
        """Ask silent peers, at the end of a tick; return the peers that turn out to be gone, and are forgotten."""
        gone: list[bytes] = []
        self.silent = 0
        for peer, waiting in self._waiting.items():
            waiting.silence.heard = peer in self.heard
            ticks = waiting.silence.handle_tick()
            waiting.stuck_ticks = waiting.stuck_ticks + 1 if waiting.frames else 0
            if ticks == 0:
                continue
            is_silent = ticks >= SILENT_TICKS
            self.silent += is_silent
            if waiting.frames:
                if is_silent and waiting.stuck_ticks > SILENT_TICKS:
                    gone.append(peer)
            elif self._is_asked(ticks) and self._sender.send_to(peer, PONG) is Sent.GONE:
                gone.append(peer)
        self.heard.clear()
        self._ended_ticks = max(0, self._ended_ticks - 1)
        for peer in gone:
            self.remove(peer)
        return gone

    def _is_asked(self, ticks: int) -> bool:
        if ticks > SILENT_TICKS:
            return is_asked(ticks)
        # Not sooner: the kernel asks by itself only while nothing is on its way. But it has said that one peer is gone.
        return self._ended_ticks > 0

    def handle_ended(self) -> list[bytes]:
        """Ask quiet peers, because some connection has ended; return the peers that are gone, and forgotten."""
        self._ended_ticks = _ENDED_TICKS
        gone = [
            peer
            for peer, waiting in self._waiting.items()
            if waiting.silence.ticks in _SEARCHED_TICKS
            and not waiting.frames
            and self._sender.send_to(peer, PONG) is Sent.GONE
        ]
        for peer in gone:
            self.remove(peer)
        return gone

    def remove(self, peer: bytes) -> None:
        """Forget a peer and the replies that wait for it."""
        waiting = self._waiting.pop(peer, None)
        self.blocked.discard(peer)
        if waiting is not None:
            self._counters.dropped_replies += len(waiting.frames)

    def reply(self, peer: bytes, frame: bytes) -> Sent:
        """Send a reply; FULL means that it waits here, GONE that the peer is no longer known."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            # A Fault to a peer that was never welcomed: sent if it can be, never kept.
            sent = self._sender.send_to(peer, frame)
            self._counters.dropped_replies += sent is not Sent.OK
            return sent
        sent = Sent.FULL if waiting.frames else self._sender.send_to(peer, frame)
        if sent is Sent.GONE:
            self._counters.dropped_replies += 1
            self.remove(peer)
        elif sent is Sent.FULL:
            self.blocked.add(peer)
            self._counters.dropped_replies += not waiting.add(frame)
        return sent

    def retry(self) -> tuple[list[bytes], list[bytes]]:
        """Send the waiting replies, as far as there is room; return the peers no longer blocked, and those gone."""
        freed: list[bytes] = []
        gone: list[bytes] = []
        for peer in list(self.blocked):
            waiting = self._waiting[peer]
            sent = Sent.OK
            while waiting.frames and (sent := self._sender.send_to(peer, waiting.frames[0])) is Sent.OK:
                waiting.remove_first()
            if sent is Sent.GONE:
                self.remove(peer)
                gone.append(peer)
            elif not waiting.frames:
                self.blocked.discard(peer)
                freed.append(peer)
        return freed, gone
