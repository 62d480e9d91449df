"""A raw, non-blocking ZeroMQ socket on an event loop.

`zmq.asyncio` costs about 35 us a receive and starves timers in a tight loop; this costs about 3 us. The socket's file
descriptor is edge-triggered (zmq_getsockopt(3), ZMQ_FD): it signals that something may have changed, not that something
is there, and any send or receive can swallow the edge. So `EVENTS` is looked at after every send, after every receive,
and once after registering; the rest is received in the next turn of the loop.

A channel drains a bounded number of messages and bytes in one turn and delivers them together, so that their server
can stamp them all before the work begins, and timers run between turns.
"""

from __future__ import annotations

import asyncio
import enum
import errno
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar, cast

import zmq
from zmq.utils.garbage import gc

from ..descriptors import require_descriptors
from ..errors import ClusterUnavailable

__all__ = [
    "DRAIN_BYTES_MAX",
    "Channel",
    "RoutedChannel",
    "Sender",
    "Sent",
    "receive_frame",
    "receive_parts",
    "receive_routed",
]

_POLLIN: Final = int(zmq.POLLIN)
"""As plain numbers: `&` and `|` with pyzmq's flag type cost 0.6 us."""
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_SNDMORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_RCVMORE: Final = int(zmq.RCVMORE)

_DRAIN_FRAMES_MAX: Final = 256
"""Messages drained in one turn: at 3 us each less than 1 ms, which is what a timer may be late for it."""

DRAIN_BYTES_MAX: Final = 4 << 20
"""Bytes drained in one turn, and one message more: about 1 ms too, and the most that a flood of large ones can hold."""

_COPY_BYTES_MAX: Final = 1 << 16
"""Above this libzmq sends from the caller's bytes instead of copying them: measured to pay from about 64 KiB."""

_UNCOPIED_DESCRIPTORS: Final = 16
"""Descriptors that have to be free before the first frame is sent without a copy: pyzmq then begins a context of its
own, and libzmq ends the process if it finds none for that (docs/decisions/0009)."""


def _copied(frame: bytes) -> bool:
    """Return whether a frame is sent as a copy."""
    if len(frame) < _COPY_BYTES_MAX:
        return True
    if gc.is_alive():
        return False
    try:
        require_descriptors(_UNCOPIED_DESCRIPTORS)
    except ClusterUnavailable:
        return True
    return False


T = TypeVar("T", bound="list[bytes] | memoryview")


def receive_parts(raw: zmq.Socket[bytes]) -> list[bytes]:
    """Take one message off a socket, its frames copied."""
    return raw.recv_multipart(_NOBLOCK)


def receive_routed(raw: zmq.Socket[bytes]) -> list[bytes]:
    """Take one message off a ROUTER socket, copied: its peer's identity, and at least one frame.

    1.1 us for two, while recv_multipart takes 1.9.
    """
    parts = [raw.recv(_NOBLOCK), raw.recv(_NOBLOCK)]
    while raw.getsockopt(_RCVMORE):
        parts.append(raw.recv(_NOBLOCK))
    return parts


def receive_frame(raw: zmq.Socket[bytes]) -> memoryview:
    """Take one frame off a socket, not copied: the view keeps libzmq's memory alive.

    0.8 us for any size, while a copy takes 0.4 us for 3 KB and 120 us for 1 MiB.
    """
    view: memoryview = raw.recv(_NOBLOCK, copy=False).buffer
    return view


class Sent(enum.Enum):
    """The result of sending a frame."""

    OK = enum.auto()
    FULL = enum.auto()
    """The peer's queue is full: try again later."""
    GONE = enum.auto()
    """No such peer is connected (only on a ROUTER socket)."""


class Sender(Protocol):
    """The way of replies: a `Channel` on a ROUTER socket."""

    def send_to(self, identity: bytes, frame: bytes) -> Sent:
        """Send one frame to one peer."""
        ...


class RoutedChannel(Sender, Protocol):
    """A channel on a ROUTER socket, or one in memory."""

    def poll(self) -> None:
        """Deliver the messages that have come, without waiting for the loop to say so."""
        ...

    def close(self) -> None:
        """Deliver nothing more; it still sends."""
        ...


class Channel(Generic[T]):
    """One socket on one loop. `receive` takes one message off it; `handle_messages` receives those that were drained.

    The channel does not own its socket: `close` only takes it off the loop.
    """

    __slots__ = ("_closed", "_fd", "_get_option", "_handle_messages", "_loop", "_receive", "_scheduled", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        raw: zmq.Socket[bytes],
        receive: Callable[[zmq.Socket[bytes]], T],
        handle_messages: Callable[[list[T]], None],
    ) -> None:
        self._loop = loop
        self._socket = raw
        self._receive: Callable[[zmq.Socket[bytes]], T] = receive
        self._handle_messages: Callable[[list[T]], None] = handle_messages
        self._scheduled = False
        self._closed = False
        # Integer options only; pyzmq's own type says int or bytes.
        self._get_option = cast("Callable[[int], int]", raw.getsockopt)
        self._fd = self._get_option(zmq.FD)
        loop.add_reader(self._fd, self._on_readable)
        self._look_again()

    def send(self, frame: bytes) -> Sent:
        """Send one frame on a DEALER socket."""
        try:
            self._socket.send(frame, _NOBLOCK, copy=_copied(frame))
        except zmq.Again:
            return Sent.FULL
        finally:
            self._look_again()
        return Sent.OK

    def send_to(self, identity: bytes, frame: bytes) -> Sent:
        """Send one frame to one peer of a ROUTER socket."""
        try:
            # 1.4 us, while send_multipart takes 2.4. If a message is rejected, its first frame is.
            self._socket.send(identity, _NOBLOCK_SNDMORE)
            self._socket.send(frame, _NOBLOCK, copy=_copied(frame))
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                return Sent.GONE
            raise
        finally:
            self._look_again()
        return Sent.OK

    def poll(self) -> None:
        """Deliver the messages that have come, without waiting for the loop to say so."""
        if not self._closed and self._get_option(zmq.EVENTS) & _POLLIN:
            self._on_readable()

    def close(self) -> None:
        """Take the socket off the loop; nothing is delivered afterwards."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)

    def _look_again(self) -> None:
        if not self._scheduled and self._get_option(zmq.EVENTS) & _POLLIN:
            self._scheduled = True
            self._loop.call_soon(self._on_scheduled)

    def _on_scheduled(self) -> None:
        self._scheduled = False
        self._on_readable()

    def _on_readable(self) -> None:
        if self._closed:
            return
        raw = self._socket
        messages: list[T] = []
        room = DRAIN_BYTES_MAX
        # The first receive is tried at once: a channel is nearly always woken by a message. Before each further one
        # EVENTS is looked at: it costs 2 us, a receive that finds nothing 5.5.
        while True:
            try:
                message = self._receive(raw)
            except zmq.Again:
                break
            messages.append(message)
            room -= _size(message)
            if room <= 0 or len(messages) == _DRAIN_FRAMES_MAX:
                # The rest must not wait for another edge. If there is none, the look that found nothing was the
                # last at this socket, or a send of the handler's looks again.
                self._look_again()
                break
            if not self._get_option(zmq.EVENTS) & _POLLIN:
                break
        if messages:
            self._handle_messages(messages)


def _size(message: list[bytes] | memoryview) -> int:
    return sum(map(len, message)) if isinstance(message, list) else len(message)
