"""The router: a shell around the dispatcher that has the links to all nodes, the event loop and the clock.

Incoming frames are given to the dispatcher a few a turn, so that timers and tasks run in between; its requests are sent
at once. `receive` gives it all frames that have come, before a deadline is judged.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final

from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import Topology
from ...wire.repeated_lines import limited_logger
from ...wire.transport.connection import Transport
from ...wire.transport.socket_connection import SocketTransport
from .dispatcher import Dispatcher
from .exchange import Exchange
from .load_shedding import reject
from .membership import Membership

__all__ = ["Router"]

_TURN_FRAMES_MAX: Final = 8
"""Replies received before timers and tasks get their turn: 8 MiB, about 4 ms."""

_log = limited_logger(__name__)


class Router:
    """A router to one cluster, in the thread of one event loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        transport: Transport | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`clock` gives seconds on the time axis of the loop's timers, `chance` numbers from 0 to 1.

        `transport` opens the connections to nodes; None for ZeroMQ sockets on the running loop.
        """
        self._loop = asyncio.get_running_loop()
        self.clock = clock
        """The clock of everything that this router's wakes and saves do."""
        self.dispatcher = Dispatcher(chance)
        self.members = Membership(self, transport or SocketTransport(), clock, chance)
        self._replies: deque[tuple[str, memoryview]] = deque()
        self._turn_scheduled = False
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf  # kept here: uvloop gives a due timer as a Handle that cannot say when
        self.handle_grown: Callable[[Topology], None] | None = None
        """Called with each topology that extends the one before; `connect` returns the first."""
        self.closed = False

    # --- the cluster ---

    @property
    def placement(self) -> Placement | None:
        """The newest placement that a Welcome brought, None before the first."""
        return self.members.placement

    def note_version(self, store: str, shard: int, version: int) -> None:
        """Take note of a version that a shard has reached."""
        self.members.note_version(store, shard, version)

    def version_seen(self, store: str, shard: int) -> int:
        """Return the newest version of a shard that this router has seen, 0 for none."""
        return self.members.version_seen(store, shard)

    async def connect(self, source: Topology | str, deadline_s: float) -> tuple[Topology, Placement]:
        """Connect to the nodes of a topology, or to those that the node at an endpoint names (`Membership.connect`)."""
        return await self.members.connect(source, deadline_s)

    def handle_topology(self, topology: Topology) -> None:
        """Accept the cluster's settings."""
        self.dispatcher.handle_topology(topology)
        if self.handle_grown is not None:
            self.handle_grown(topology)

    def handle_node_up(self, node: str) -> None:
        """Send to a node that welcomed this router."""
        now = self.clock()
        self.dispatcher.handle_up(node, now)
        self._send(now)

    def handle_node_down(self, node: str) -> None:
        """Handle a broken connection to a node."""
        # Replies of the broken connection that were not received yet are asked for again with the rest.
        # In place, as this may be in the middle of a turn over them.
        others = [reply for reply in self._replies if reply[0] != node]
        self._replies.clear()
        self._replies.extend(others)
        now = self.clock()
        self.dispatcher.handle_down(node, now)
        self._send(now)

    def handle_node_silent(self, node: str) -> None:
        """Handle a node's silence."""
        self.dispatcher.handle_silent(node)

    def handle_node_heard(self, node: str) -> None:
        """Handle the end of a node's silence."""
        now = self.clock()
        self.dispatcher.handle_heard(node, now)
        self._send(now)

    def is_up(self, node: str) -> bool:
        """Return whether a node is connected."""
        return self.dispatcher.is_up(node)

    def why_down(self, node: str) -> str:
        """Return why a node is not connected, "" if it is."""
        return "" if self.is_up(node) else self.members.why_down(node)

    def close(self) -> None:
        """Close every connection; exchanges under way fail."""
        if self.closed:
            return
        self.closed = True
        # Exchanges first: their owners are notified before the links say that they are down.
        self.dispatcher.close("the cluster was closed")
        if self._timer is not None:
            self._timer.cancel()
        self._replies.clear()
        self.members.close()

    # --- requests ---

    def submit(self, exchanges: Collection[Exchange]) -> None:
        """Send exchanges, each when its node has room for it; those rejected are notified in the loop's next turn.

        They are one caller's, in an order that goes round the nodes.
        """
        now = self.clock()
        rejected = self.dispatcher.submit(exchanges, now)
        if rejected:
            self._loop.call_soon(reject, rejected)
        self._send(now)

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Forget exchanges that nobody waits for any more; notify nodes that may still be spared work."""
        now = self.clock()
        for node, frame in self.dispatcher.cancel(exchanges, now):
            self.members.links[node].send(frame)
        self._send(now)

    def _send(self, now: float) -> None:
        """Send all exchanges that may be sent now, and set the timer to when there may be more."""
        dispatcher, links = self.dispatcher, self.members.links
        while (exchange := dispatcher.poll_send(now)) is not None:
            budget_us = int((exchange.deadline - now) * 1e6)
            if not links[exchange.node].send(exchange.encode(budget_us, int(now * 1e6))):
                dispatcher.handle_unsent(exchange, now)
        at = dispatcher.poll_timeout()
        if at < self._timer_at and not self.closed:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._handle_timer)

    def _handle_timer(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        now = self.clock()
        self.dispatcher.handle_timeout(now)
        self._send(now)

    # --- replies ---

    def handle_node_frames(self, node: str, frames: list[memoryview]) -> None:
        """Receive replies of a node."""
        self._replies.extend([(node, frame) for frame in frames])
        if not self._turn_scheduled and not self.dispatcher.is_receiving:
            self._turn()

    def receive(self) -> None:
        """Receive all replies that have come, before a deadline is judged: a loop that stalled runs its timers first.

        All of them, however many came together in the stall: each node's window bounds them, as waiting requests are
        not sent before all is received.
        """
        dispatcher = self.dispatcher
        if dispatcher.is_receiving:
            return
        dispatcher.is_receiving = True
        try:
            while True:
                self.members.poll()
                if not self._replies:
                    return
                while self._replies:
                    self._handle_reply()
        finally:
            dispatcher.is_receiving = False
            self._send(self.clock())

    def _turn(self) -> None:
        self._turn_scheduled = False
        try:
            for _ in range(_TURN_FRAMES_MAX):
                if not self._replies:
                    return
                self._handle_reply()
        finally:
            # Also if one of them failed: the others must not wait for the next that comes.
            if self._replies and not self._turn_scheduled:
                self._turn_scheduled = True
                self._loop.call_soon(self._turn)

    def _handle_reply(self) -> None:
        node, frame = self._replies.popleft()
        now = self.clock()
        try:
            stray = self.dispatcher.handle_frame(node, frame, now)
        finally:
            self._send(now)
        if stray is None:
            return
        if stray.is_forgotten:
            self.members.links[node].reopen()
        else:
            _log.warning("reply is ignored", extra={"node": node, "detail": stray.reason})
