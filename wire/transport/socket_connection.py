"""Connections over ZeroMQ sockets: each is one DEALER socket, from connecting to its first break.

A ZeroMQ socket would reconnect by itself and send what it had queued before any greeting; here a socket lives as long
as its connection. That a connection broke is reported by the socket's monitor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zmq.utils.monitor import parse_monitor_message

from .channel import Channel, Sent, receive_frame, receive_parts
from .sockets import BROKEN_EVENTS, SocketOwner

__all__ = ["SocketConnection", "SocketTransport"]


class SocketConnection:
    """One socket and its monitor."""

    def __init__(
        self,
        sockets: SocketOwner,
        endpoint: str,
        hello: bytes,
        handle_frames: Callable[[SocketConnection, list[memoryview]], None],
        handle_broken: Callable[[SocketConnection], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._handle_broken = handle_broken
        self._requests, self._monitor = sockets.monitored_dealer(endpoint)
        self._channel = Channel(loop, self._requests, receive_frame, lambda frames: handle_frames(self, frames))
        self._events = Channel(loop, self._monitor, receive_parts, self._handle_events)
        self._open = True
        # Queued before anything else, so it is the first frame that the node gets, whenever it can be reached.
        self._channel.send(hello)

    def send(self, frame: bytes) -> bool:
        """Send a frame; return False if libzmq's queue is full."""
        return self._channel.send(frame) is Sent.OK

    def poll(self) -> None:
        """Deliver the frames that have come and were not received yet."""
        self._channel.poll()

    def close(self) -> None:
        """Close the socket; frames that it had queued are dropped."""
        if self._open:
            self._open = False
            self._channel.close()
            self._events.close()
            self._sockets.close_monitored(self._requests, self._monitor)

    def _handle_events(self, messages: list[list[bytes]]) -> None:
        if any(parse_monitor_message(message)["event"] & BROKEN_EVENTS for message in messages):
            self._handle_broken(self)


class SocketTransport:
    """Connections on sockets of one context, on the running loop; `close` ends what is still open."""

    def __init__(self) -> None:
        self._sockets = SocketOwner()

    def connect(
        self,
        endpoint: str,
        hello: bytes,
        handle_frames: Callable[[SocketConnection, list[memoryview]], None],
        handle_broken: Callable[[SocketConnection], None],
    ) -> SocketConnection:
        """Begin to connect.

        Raises:
            ClusterUnavailable: the endpoint is none, or no socket can be made.
        """
        return SocketConnection(self._sockets, endpoint, hello, handle_frames, handle_broken)

    def close(self) -> None:
        """Close every socket; frames that are on their way get a fifth of a second."""
        self._sockets.close()
