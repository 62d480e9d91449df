"""Connections in memory: the transport of routers in tests, and the ROUTER sockets of the nodes that they talk to.

Frames of one connection come in the order in which they were sent, each after a delay; those of several connections in
any order that their delays make. As with TCP none is lost while its connection holds, and a connection that breaks
loses all that is on its way.
"""

import asyncio
import itertools
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from dawnchorus.wire.errors import ClusterUnavailable
from dawnchorus.wire.transport.channel import Sent
from dawnchorus.wire.transport.connection import Connection
from tests.support.virtual_time import VirtualLoop

__all__ = ["Listener", "MemoryConnection", "Network", "network"]

_DELAY_S: Final = 0.0001
"""About what loopback takes."""

_QUEUE_FRAMES_MAX: Final = 4_096
"""Frames on their way to a node before its connection has no room, as a router's socket has it."""


class Pipe:
    """One direction of a connection: frames on their way, each with the time at which it is there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[list[bytes]], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._frames: deque[tuple[float, bytes]] = deque()
        self._scheduled = False
        self._last = 0.0
        self.is_stopped = False

    def __len__(self) -> int:
        return len(self._frames)

    def send(self, frame: bytes, delay_s: float) -> None:
        """Send a frame; it never overtakes earlier ones."""
        self._last = max(self._last, self._loop.time() + delay_s)
        self._frames.append((self._last, frame))
        self._schedule()

    def poll(self) -> None:
        """Deliver the frames that have arrived."""
        due: list[bytes] = []
        while self._frames and self._frames[0][0] <= self._loop.time() and not self.is_stopped:
            due.append(self._frames.popleft()[1])
        if due:
            self._deliver(due)

    def go_on(self) -> None:
        """Deliver again after a stop."""
        self.is_stopped = False
        self._schedule()

    def clear(self) -> None:
        """Lose the frames on their way."""
        self._frames.clear()

    def _schedule(self) -> None:
        if self._frames and not self._scheduled and not self.is_stopped:
            self._scheduled = True
            self._loop.call_at(self._frames[0][0], self._come)

    def _come(self) -> None:
        self._scheduled = False
        self.poll()
        self._schedule()


class MemoryConnection:
    """A router's end of a connection, and what its node has of it."""

    def __init__(
        self,
        owner: "Network",
        endpoint: str,
        identity: bytes,
        handle_frames: Callable[[Connection, list[memoryview]], None],
        handle_broken: Callable[[Connection], None],
    ) -> None:
        self._network = owner
        self.endpoint = endpoint
        self.identity = identity
        self._handle_broken = handle_broken
        self._open = True
        self.to_node = Pipe(owner.loop, self._deliver)
        self.to_router = Pipe(owner.loop, lambda frames: handle_frames(self, [memoryview(frame) for frame in frames]))

    def send(self, frame: bytes) -> bool:
        """Send a frame to the node; return False if there is no room."""
        if not self._open or len(self.to_node) >= self._network.queue_frames_max:
            return False
        self.to_node.send(frame, self._network.delay_s(self.endpoint))
        return True

    def poll(self) -> None:
        """Deliver the frames that have arrived to the router."""
        self.to_router.poll()

    def close(self) -> None:
        """Close it from the router's end."""
        self._end()

    def break_off(self) -> None:
        """Break it, as a node that stops or a cable that is cut does: the router is notified a little later."""
        if self._open:
            self._end()
            self._network.loop.call_later(self._network.delay_s(self.endpoint), self._handle_broken, self)

    def _end(self) -> None:
        if self._open:
            self._open = False
            self.to_node.clear()
            self.to_router.clear()
            self._network.connections.pop(self.identity, None)

    def _deliver(self, frames: list[bytes]) -> None:
        listener = self._network.listeners.get(self.endpoint)
        if listener is None:
            self.break_off()
        else:
            listener.handle_messages([[self.identity, frame] for frame in frames])


class Listener:
    """A node's end of all its connections, with what nodes use of a `Channel`."""

    def __init__(
        self, owner: "Network", endpoints: list[str], handle_messages: Callable[[list[list[bytes]]], None]
    ) -> None:
        self._network = owner
        self._endpoints = endpoints
        self.handle_messages = handle_messages
        for endpoint in endpoints:
            assert endpoint not in owner.listeners, f"{endpoint} is in use"
            owner.listeners[endpoint] = self

    def send_to(self, identity: bytes, frame: bytes, later_s: float = 0.0) -> Sent:
        """Send a frame to one router, `later_s` from now."""
        connection = self._network.connections.get(identity)
        if connection is None or connection.endpoint not in self._endpoints:
            return Sent.GONE
        connection.to_router.send(frame, later_s + self._network.delay_s(connection.endpoint))
        return Sent.OK

    def connections(self) -> list[MemoryConnection]:
        """Return the frames that have arrived."""
        return [
            connection for connection in self._network.connections.values() if connection.endpoint in self._endpoints
        ]

    def close(self) -> None:
        """Break all connections, and stop listening."""
        for endpoint in self._endpoints:
            self._network.listeners.pop(endpoint, None)
        for connection in self.connections():
            connection.break_off()


class Network:
    """All listeners and connections on one loop: a router's transport."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.listeners: dict[str, Listener] = {}
        self.connections: dict[bytes, MemoryConnection] = {}
        """By the identity that the node knows each by."""
        self.queue_frames_max = _QUEUE_FRAMES_MAX
        self.delay_s: Callable[[str], float] = lambda _endpoint: _DELAY_S
        """How long the next frame to or from an endpoint takes; a simulation puts one of its own in place."""
        self._identities = itertools.count(1)

    def connect(
        self,
        endpoint: str,
        hello: bytes,
        handle_frames: Callable[[Connection, list[memoryview]], None],
        handle_broken: Callable[[Connection], None],
    ) -> MemoryConnection:
        """Begin to connect; the connection breaks if nobody listens."""
        if not endpoint.startswith(("tcp://127.0.0.1:", "ipc://")):
            raise ClusterUnavailable(f"cannot connect to {endpoint}: it is no endpoint of this network")
        identity = next(self._identities).to_bytes(5, "big")
        made = MemoryConnection(self, endpoint, identity, handle_frames, handle_broken)
        self.connections[identity] = made
        made.send(hello)
        return made

    def close(self) -> None:
        """Close nothing: each router closes its own connections, and the network is everybody's."""


_networks: weakref.WeakKeyDictionary[VirtualLoop, Network] = weakref.WeakKeyDictionary()


def network() -> Network | None:
    """Return the network of the running loop if its time is virtual; None on a loop with real sockets."""
    loop = asyncio.get_running_loop()
    return _networks.setdefault(loop, Network(loop)) if isinstance(loop, VirtualLoop) else None


def is_real_loop() -> bool:
    """Return whether a loop with real sockets runs here."""
    try:
        return not isinstance(asyncio.get_running_loop(), VirtualLoop)
    except RuntimeError:
        return False
