"""The connection of a router to one node.

A link opens the node's TCP endpoint and says Hello; Welcome brings the node's ipc endpoint, and where that path exists
on this host the link moves there before it is used. A ZeroMQ socket would reconnect by itself and send what it had
queued before any Hello; here a socket lives as long as its connection, and a broken one is replaced by a fresh one that
begins with Hello again. That a connection broke is told by the socket's monitor, and by heartbeats where the node is
silent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from typing import Final, Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..wire.channel import Channel, Sent, receive_frame, receive_parts
from ..wire.errors import ProtocolError
from ..wire.messages import Fault, Reply, Welcome, decode_reply
from ..wire.sockets import SocketOwner

__all__ = ["Link", "LinkOwner"]

_REOPEN_SECONDS: Final = 0.02
"""Pause before a broken connection is opened again; libzmq then tries every 20 to 320 ms."""

_REFUSED_SECONDS: Final = 2.0
"""Pause after a node refused the Hello: a person has to change something."""

_IPC_SECONDS: Final = 0.25
"""How long the ipc endpoint may take to welcome; then TCP stays in use."""

_BROKEN_EVENTS: Final = zmq.EVENT_DISCONNECTED

_log = logging.getLogger(__name__)


class LinkOwner(Protocol):
    """Who gets what a link has to tell."""

    def handle_up(self, link: Link, welcome: Welcome) -> None:
        """The node welcomed this router; requests can be sent."""

    def handle_down(self, link: Link) -> None:
        """The connection broke."""

    def handle_refused(self, link: Link, reason: str) -> None:
        """The node does not take this router; the link tries again later."""

    def handle_frames(self, link: Link, frames: list[memoryview]) -> None:
        """Replies came in."""


class _Connection:
    """One socket, from connecting to its first break."""

    def __init__(
        self,
        sockets: SocketOwner,
        endpoint: str,
        hello: bytes,
        handle_frames: Callable[[_Connection, list[memoryview]], None],
        handle_broken: Callable[[_Connection], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._handle_broken = handle_broken
        self._requests = sockets.dealer(endpoint)
        self._monitor = sockets.monitor(self._requests, _BROKEN_EVENTS)
        self._channel = Channel(loop, self._requests, receive_frame, lambda frames: handle_frames(self, frames))
        self._events = Channel(loop, self._monitor, receive_parts, self._handle_events)
        self._open = True
        # Queued before anything else, so it is the first frame that the node gets, whenever it can be reached.
        self._channel.send(hello)

    def send(self, frame: bytes) -> bool:
        """Send a frame; return False where libzmq's queue is full."""
        return self._channel.send(frame) is Sent.OK

    def poll(self) -> None:
        """Hand over what has come and was not taken in yet."""
        self._channel.poll()

    def close(self) -> None:
        """Close the socket; what it had queued is dropped."""
        if self._open:
            self._open = False
            self._channel.close()
            self._events.close()
            self._requests.disable_monitor()
            self._sockets.close_socket(self._monitor)
            self._sockets.close_socket(self._requests)

    def _handle_events(self, messages: list[list[bytes]]) -> None:
        if any(parse_monitor_message(message)["event"] & _BROKEN_EVENTS for message in messages):
            self._handle_broken(self)


class Link:
    """A router's way to one node, kept open until `close`."""

    def __init__(self, sockets: SocketOwner, endpoint: str, hello: bytes, owner: LinkOwner, node: str = "") -> None:
        """Begin to connect. `node` is its name, "" where only the endpoint is known until Welcome says it."""
        self.node = node
        self.endpoint = endpoint
        self._sockets = sockets
        self._hello = hello
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tcp: _Connection | None = None
        self._ipc: _Connection | None = None
        self._used: _Connection | None = None
        self._welcome: Welcome | None = None
        self._closed = False
        self._open()

    @property
    def up(self) -> bool:
        """Whether the node has welcomed this router on the connection that there is."""
        return self._used is not None

    def send(self, frame: bytes) -> bool:
        """Send a request; return False where there is no connection, or no room on it."""
        return self._used is not None and self._used.send(frame)

    def poll(self) -> None:
        """Hand over what has come and was not taken in yet."""
        if self._used is not None:
            self._used.poll()

    def close(self) -> None:
        """Close the connection for good."""
        self._closed = True
        self._drop()

    def _open(self) -> None:
        self._timer = None
        self._tcp = _Connection(self._sockets, self.endpoint, self._hello, self._handle_frames, self._handle_broken)

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in (self._tcp, self._ipc):
            if connection is not None:
                connection.close()
        self._tcp = self._ipc = self._used = None

    def _handle_frames(self, connection: _Connection, frames: list[memoryview]) -> None:
        if connection is self._used:
            self._owner.handle_frames(self, frames)
            return
        for frame in frames:
            self._handle_greeting(connection, frame)
            if self._closed:
                return

    def _handle_greeting(self, connection: _Connection, frame: memoryview) -> None:
        try:
            reply: Reply = decode_reply(frame)
        except ProtocolError as error:
            self.refuse(f"its greeting cannot be read: {error}")
            return
        if isinstance(reply, Fault):
            self.refuse(f"{reply.detail}")
        elif not isinstance(reply, Welcome):
            _log.warning("reply before Welcome", extra={"node": self.node, "endpoint": self.endpoint})
        elif self.node and reply.node != self.node:
            self.refuse(f"{self.endpoint} is node {reply.node!r}, not {self.node!r}")
        elif connection is self._tcp and _is_local_socket(reply.ipc):
            self._welcome = reply
            self._ipc = _Connection(self._sockets, reply.ipc, self._hello, self._handle_frames, self._handle_broken)
            self._timer = self._loop.call_later(_IPC_SECONDS, self._give_up_ipc)
        else:
            self._use(connection, reply)

    def _use(self, connection: _Connection, welcome: Welcome) -> None:
        """Take a welcomed connection into use, and close the other."""
        other = self._ipc if connection is self._tcp else self._tcp
        if other is not None:
            other.close()
        self._tcp, self._ipc = (connection, None) if connection is self._tcp else (None, connection)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._used = connection
        self.node = welcome.node
        self._owner.handle_up(self, welcome)

    def _give_up_ipc(self) -> None:
        self._timer = None
        if self._tcp is not None and self._welcome is not None:
            self._use(self._tcp, self._welcome)

    def _handle_broken(self, connection: _Connection) -> None:
        if connection is self._ipc and self._used is not connection:
            self._give_up_ipc()
        elif connection in (self._used, self._tcp):
            self.reopen()

    def reopen(self, pause_s: float = _REOPEN_SECONDS) -> None:
        """Drop the connection, if there is one, and open a fresh one soon."""
        was_used = self._used is not None
        self._drop()
        if not self._closed:
            self._timer = self._loop.call_later(pause_s, self._open)
        if was_used:
            self._owner.handle_down(self)

    def refuse(self, reason: str) -> None:
        """Take note that router and node do not belong together; it is tried again later."""
        _log.warning("node refuses", extra={"node": self.node, "endpoint": self.endpoint, "detail": reason})
        self.reopen(_REFUSED_SECONDS)
        self._owner.handle_refused(self, reason)


def _is_local_socket(endpoint: str) -> bool:
    """Return whether an ipc endpoint's path is a socket on this host that this user may open."""
    path = endpoint.removeprefix("ipc://")
    if path == endpoint:
        return False
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and os.access(path, os.R_OK | os.W_OK)
    except OSError:
        return False
