"""The connection of a router to one node.

A link opens the node's TCP endpoint and says Hello; Welcome brings the node's ipc endpoint, and if that path exists on
this host the link moves there before it is used. A connection that broke is replaced by a fresh one that begins with
Hello again, after a pause of a back-off of ours. The link opens its connections through a transport: ZeroMQ sockets
(`wire.transport.socket_connection`), or memory in tests.

A node that says nothing is asked (Ping), and marked silent after a while (`wire.transport.liveness`). The connection
is kept: a busy or stopped node resumes there. Meanwhile another is tried beside it, as this one may be dead
without a notification; the one answered first is used, the old one by preference.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
from collections.abc import Callable
from typing import Final, Protocol

from ..errors import ClusterUnavailable, ProtocolError
from ..protocol.messages import PING, Fault, Reply, Welcome, decode_reply
from ..repeated_lines import limited_logger
from .backoff import Backoff
from .liveness import SILENT_TICKS, Silence, is_asked

__all__ = ["Connection", "Link", "LinkOwner", "Transport"]

_IPC_SECONDS: Final = 0.25
"""The longest that the ipc endpoint may take to welcome; then TCP stays in use."""

_GRACE_SECONDS: Final = 0.25
"""The longest that a node that welcomes this router anew may take to say something on the connection on which it was
silent: one that was only busy serves both in the same turn."""

_GREETING_TICKS: Final = 5
"""Ticks that a node may take to answer a Hello; then the connection is opened anew, 3.8 to 4.75 s after it was."""

_log = limited_logger(__name__)


class Connection(Protocol):
    """A way to one node, from connecting to its first break. Frames are delivered in order, none twice."""

    def send(self, frame: bytes) -> bool:
        """Send a frame; return False if there is no room for it now."""
        ...

    def poll(self) -> None:
        """Deliver the frames that have come and were not received yet."""

    def close(self) -> None:
        """Close it; frames that it had queued are dropped, and nothing is delivered afterwards."""


class Transport(Protocol):
    """Connections to nodes, by endpoint."""

    def connect(
        self,
        endpoint: str,
        hello: bytes,
        handle_frames: Callable[[Connection, list[memoryview]], None],
        handle_broken: Callable[[Connection], None],
    ) -> Connection:
        """Begin to connect; `hello` is the first frame that the node gets. Nothing is called before this returns.

        Raises:
            ClusterUnavailable: the endpoint is none, or no connection can be made just now.
        """
        ...

    def close(self) -> None:
        """Close every connection."""


class LinkOwner(Protocol):
    """The owner of a link: it receives the link's notifications."""

    def handle_up(self, link: Link, welcome: Welcome) -> None:
        """Receive the Welcome: requests can be sent."""

    def handle_down(self, link: Link) -> None:
        """Receive that the connection broke."""

    def handle_silent(self, link: Link) -> None:
        """Receive that the node has said nothing for a while; the connection is kept."""

    def handle_heard(self, link: Link) -> None:
        """Receive that the silent node has said something."""

    def handle_rejected(self, link: Link, reason: str) -> None:
        """Receive that the node rejects this router; the link tries again later."""

    def handle_frames(self, link: Link, frames: list[memoryview]) -> None:
        """Receive replies."""


class Link:
    """A router's way to one node, kept open until `close`."""

    def __init__(
        self,
        transport: Transport,
        endpoint: str,
        hello: bytes,
        owner: LinkOwner,
        node: str = "",
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Begin to connect. `node` is its name, "" if only the endpoint is known until Welcome says it.

        `chance` draws from 0 to 1, for the pauses between attempts.
        """
        self.node = node
        self.endpoint = endpoint
        self._transport = transport
        self._hello = hello
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff(chance)
        self._timer: asyncio.TimerHandle | None = None
        self._tcp: Connection | None = None  # greeted, not yet in use
        self._tcp_ticks = 0  # since it was opened, up to its Welcome
        self._ipc: Connection | None = None  # as well; `_tcp` was welcomed then
        self._used: Connection | None = None
        self._silence = Silence()
        self._silent = False
        self._welcome: Welcome | None = None
        self._closed = False
        self._open()

    @property
    def up(self) -> bool:
        """Whether the node has welcomed this router on the present connection."""
        return self._used is not None

    def send(self, frame: bytes) -> bool:
        """Send a request; return False if there is no connection, or no room on it."""
        return self._used is not None and self._used.send(frame)

    def poll(self) -> None:
        """Deliver the frames that have come and were not received yet."""
        if self._used is not None:
            self._used.poll()

    def close(self) -> None:
        """Close the connection for good."""
        self._closed = True
        self._drop()

    def handle_tick(self) -> None:
        """Look whether the node is alive: to be called every LIVENESS_TICK_S."""
        for greeted in (self._tcp, self._ipc):
            if greeted is not None:
                greeted.poll()
        self.poll()
        if self._tcp is not None:
            self._tcp_ticks += 1
            if self._tcp_ticks >= _GREETING_TICKS:
                self._try_again(self._backoff.next_pause_s())
        used = self._used
        if used is None:
            if self._tcp is None and self._timer is None and not self._closed:
                self._try_again(self._backoff.next_pause_s())  # not expected; if it happens, the link recovers here
            return
        ticks = self._silence.handle_tick()
        if is_asked(ticks):
            used.send(PING)
        if ticks >= SILENT_TICKS and not self._silent:
            self._silent = True
            self._owner.handle_silent(self)
        if self._silent and self._tcp is None and self._timer is None:
            self._try_again(0.0)

    # --- connections that are tried ---

    def _connect(self, endpoint: str) -> Connection:
        return self._transport.connect(endpoint, self._hello, self._handle_frames, self._handle_broken)

    def _open(self) -> None:
        self._timer = None
        self._tcp_ticks = 0
        try:
            self._tcp = self._connect(self.endpoint)
        except ClusterUnavailable as error:
            # No descriptors are left, for instance: they may be there later.
            self._try_again(self._backoff.next_pause_s())
            self._owner.handle_rejected(self, str(error))

    def _try_again(self, pause_s: float) -> None:
        """Abandon the attempt, and try anew after a pause; the connection in use stays in use."""
        self._give_up_trying()
        if not self._closed:
            self._timer = self._loop.call_later(pause_s, self._open)

    def _give_up_trying(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in (self._tcp, self._ipc):
            if connection is not None:
                connection.close()
        self._tcp = self._ipc = None

    def _drop(self) -> None:
        self._give_up_trying()
        if self._used is not None:
            self._used.close()
        self._used = None
        self._silent = False

    # --- incoming frames ---

    def _handle_frames(self, connection: Connection, frames: list[memoryview]) -> None:
        if connection is self._used:
            self._silence.heard = True
            if self._silent:
                self._silent = False
                self._give_up_trying()
                self._owner.handle_heard(self)
            self._owner.handle_frames(self, frames)
            return
        for frame in frames:
            self._handle_greeting(connection, frame)
            if self._closed:
                return

    def _handle_greeting(self, connection: Connection, frame: memoryview) -> None:
        if connection is not self._tcp and connection is not self._ipc:
            return  # it was abandoned by a frame before this one
        try:
            reply: Reply = decode_reply(frame)
        except ProtocolError as error:
            self._turn_away(f"its greeting cannot be read: {error}")
            return
        if connection is self._ipc and self._welcome is not None and not _is_of_same_node(reply, self._welcome):
            # Over TCP it was welcome: either it is not now, or the server behind that path is another node.
            _log.warning("unix socket does not welcome", extra={"node": self.node, "endpoint": self._welcome.ipc})
            self._give_up_ipc()
        elif isinstance(reply, Fault):
            self._turn_away(f"{reply.detail}")
        elif not isinstance(reply, Welcome):
            _log.warning("reply before Welcome", extra={"node": self.node, "endpoint": self.endpoint})
        elif self.node and reply.node != self.node:
            self._turn_away(f"{self.endpoint} is node {reply.node!r}, not {self.node!r}")
        elif connection is self._tcp and self._ipc is None and self._may_use_socket(reply.ipc):
            self._welcome = reply
            self._open_ipc(connection, reply)
        else:
            self._take(connection, reply)

    def _turn_away(self, reason: str) -> None:
        """Try again later: the attempt was rejected; a connection in use, though silent, is kept."""
        if self._used is None:
            self.reject(reason)
        else:
            self._try_again(self._backoff.refused_pause_s())

    def _may_use_socket(self, endpoint: str) -> bool:
        """Return whether an ipc endpoint's path is a socket on this host; one that this user may not open is logged."""
        path = endpoint.removeprefix("ipc://")
        if path == endpoint:
            return False
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                return False
            reason = "" if os.access(path, os.R_OK | os.W_OK) else os.strerror(errno.EACCES)
        except FileNotFoundError:
            return False  # the node is on another host, or in a container of its own
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            _log.warning(
                "unix socket cannot be used: TCP is", extra={"node": self.node, "path": path, "detail": reason}
            )
        return not reason

    def _open_ipc(self, tcp: Connection, welcome: Welcome) -> None:
        try:
            self._ipc = self._connect(welcome.ipc)
        except ClusterUnavailable as error:
            extra = {"node": self.node, "path": welcome.ipc, "detail": str(error)}
            _log.warning("unix socket cannot be used: TCP is", extra=extra)
            self._take(tcp, welcome)
            return
        self._set_timer(_IPC_SECONDS, self._give_up_ipc)

    def _give_up_ipc(self) -> None:
        self._timer = None
        if self._ipc is not None:
            self._ipc.close()
            self._ipc = None
        if self._tcp is not None and self._welcome is not None:
            self._take(self._tcp, self._welcome)

    def _set_timer(self, delay_s: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, action)

    def _take(self, connection: Connection, welcome: Welcome) -> None:
        """Use a connection that was welcomed; the old one, if there is one, may still turn out to be alive."""
        if self._used is None:
            self._use(connection, welcome)
        else:
            self._set_timer(_GRACE_SECONDS, lambda: self._use(connection, welcome))

    def _use(self, connection: Connection, welcome: Welcome) -> None:
        """Take a welcomed connection into use, and close the others."""
        if connection is self._tcp:
            self._tcp = None
        else:
            self._ipc = None
        self._replace_used()
        if self._closed:  # the owner, notified that the old one is down, has closed this router
            connection.close()
            return
        self._give_up_trying()
        self._used = connection
        self._silence = Silence()
        self._backoff.handle_welcome()
        self.node = welcome.node
        self._owner.handle_up(self, welcome)

    def _replace_used(self) -> None:
        if self._used is not None:
            self._used.close()
            self._used = None
            self._silent = False
            self._owner.handle_down(self)

    def _handle_broken(self, connection: Connection) -> None:
        if connection is self._ipc:
            self._give_up_ipc()
        elif connection is self._tcp:
            self._try_again(self._backoff.next_pause_s())
        elif connection is self._used:
            self._replace_used()
            if self._tcp is None and self._timer is None:  # else another is tried already
                self._try_again(self._backoff.next_pause_s())

    def reopen(self) -> None:
        """Drop the connection, if there is one, and open a fresh one soon."""
        self._begin_again(self._backoff.next_pause_s())

    def _begin_again(self, pause_s: float) -> None:
        was_used = self._used is not None
        self._drop()
        self._try_again(pause_s)
        if was_used:
            self._owner.handle_down(self)

    def reject(self, reason: str) -> None:
        """Take note that router and node do not belong together; it is tried again later."""
        _log.warning("node rejects this client", extra={"node": self.node, "endpoint": self.endpoint, "detail": reason})
        self._begin_again(self._backoff.refused_pause_s())
        self._owner.handle_rejected(self, reason)


def _is_of_same_node(reply: Reply, welcome: Welcome) -> bool:
    """Return whether a reply is a Welcome of the same node of the same cluster on the same data directory."""
    told = (welcome.node, welcome.cluster_uuid, welcome.directory)
    return isinstance(reply, Welcome) and (reply.node, reply.cluster_uuid, reply.directory) == told
