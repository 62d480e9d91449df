"""The router: links to all nodes, flow control towards each, and the exchanges on their way.

How a request passes through: an exchange (a fetch, commit, scan or status for one node) is handed to `submit`; its
node's `NodeFlow` says when it may go; it is encoded with what is left of its deadline and sent on the node's `Link`;
its replies come back by number until one is the last. Whoever made the exchange keeps its deadline, and calls `cancel`.

The placement comes with every Welcome; the newest revision counts.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from ..wire.errors import ClusterUnavailable, PlacementError, ProtocolError, TopologyError
from ..wire.messages import (
    PROTOCOL,
    Answer,
    Fault,
    FaultCode,
    Hello,
    Reply,
    Welcome,
    decode_reply,
    encode,
)
from ..wire.placement import Placement, decode_placement
from ..wire.sockets import SocketOwner
from ..wire.topology import Topology, decode_topology
from .flow import NodeFlow
from .link import Link

__all__ = ["Exchange", "Router"]

_TURN_FRAMES_MAX: Final = 8
"""Replies taken in before timers and tasks get their turn: 8 MiB, about 4 ms."""

_log = logging.getLogger(__name__)


class Exchange(Protocol):
    """One request to one node, on its way to its answer."""

    number: int
    node: str
    deadline: float
    """In seconds of the monotonic clock."""

    @property
    def expected_bytes(self) -> int:
        """How many bytes its reply is expected to have."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent twice."""
        ...

    def encode(self, budget_us: int) -> bytes:
        """Return its frame."""
        ...

    def handle_reply(self, reply: Answer) -> bool:
        """Take in a reply; return whether it was the last. Raises ProtocolError for one that does not fit."""
        ...

    def handle_failure(self, code: FaultCode | None, reason: str) -> None:
        """It will get no answer: the node said so (`code`), or the connection broke and it cannot be repeated."""
        ...


class Router:
    """A router to one cluster, in the thread of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = SocketOwner()
        self._links: dict[str, Link] = {}
        self._bootstrap: Link | None = None
        self._flows: dict[str, NodeFlow[Exchange]] = {}
        self._client = secrets.token_bytes(8)
        self._replies: deque[tuple[str, memoryview]] = deque()
        self._turn_scheduled = False
        self._refusals: dict[str, str] = {}
        self._welcomed = asyncio.Event()
        self.topology: Topology | None = None
        self.placement: Placement | None = None
        self._versions: dict[tuple[str, int], int] = {}
        self.closed = False
        self.stray_replies = 0
        """Replies to requests that nobody waits for any more, and frames that are no reply."""

    # --- connecting ---

    async def connect(self, source: Topology | str, deadline_s: float) -> tuple[Topology, Placement]:
        """Connect to the nodes of a topology, or to those that the node at an endpoint names.

        Returns when every node has welcomed this router or refused it, or at the deadline with those that have.

        Raises:
            ClusterUnavailable: none has.
            PlacementError: the topology contradicts the cluster's placement.
        """
        if isinstance(source, Topology):
            self._connect_to(source)
        else:
            self._bootstrap = Link(self._sockets, source, self._hello("", ""), self)
        end = self._loop.time() + deadline_s
        while not self._answered():
            self._welcomed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._welcomed.wait()
            except TimeoutError:
                break
        if self.topology is None or self.placement is None:
            raise ClusterUnavailable(self._why_unavailable(source, deadline_s))
        _require_placed(self.topology, self.placement)
        return self.topology, self.placement

    def _answered(self) -> bool:
        if not self._links:
            return bool(self._refusals)
        return all(flow.up or node in self._refusals for node, flow in self._flows.items())

    def _why_unavailable(self, source: Topology | str, deadline_s: float) -> str:
        name = f"cluster {source.name!r}" if isinstance(source, Topology) else source
        if self._refusals:
            reasons = "; ".join(sorted(set(self._refusals.values())))
            return f"{name}: no node takes this client: {reasons}"
        endpoints = [link.endpoint for link in self._links.values()] or [str(source)]
        tried = ", ".join(endpoints)
        return f"{name}: no node answered within {deadline_s:g} s ({tried}); is it up? `dawnchorus up` starts it"

    def _connect_to(self, topology: Topology) -> None:
        self.topology = topology
        hello = self._hello(topology.name, topology.digest)
        for name, node in topology.nodes.items():
            if name not in self._links:
                self._flows[name] = NodeFlow()
                self._links[name] = Link(self._sockets, node.endpoint, hello, self, name)

    def _hello(self, cluster: str, digest: str) -> bytes:
        return encode(Hello(PROTOCOL, cluster, self._client, digest))

    def handle_up(self, link: Link, welcome: Welcome) -> None:
        """A node welcomed this router."""
        try:
            placement = decode_placement(welcome.placement)
            topology = decode_topology(welcome.topology)
        except (PlacementError, TopologyError) as error:
            link.refuse(f"the Welcome of node {link.node!r} cannot be read: {error}")
            return
        if self.placement is not None and placement.cluster_uuid != self.placement.cluster_uuid:
            link.refuse(f"node {link.node!r} is of another cluster ({placement.cluster_uuid})")
            return
        if self.placement is None or placement.revision > self.placement.revision:
            self.placement = placement
        for store, shard, version in welcome.versions:
            self.note_version(store, shard, version)
        if link is self._bootstrap:
            link.close()
            self._bootstrap = None
            self._connect_to(topology)
        else:
            self._refusals.pop(link.node, None)
            self._flows[link.node].handle_up()
            self._pump(link.node)
        self._welcomed.set()

    def handle_down(self, link: Link) -> None:
        """The connection to a node broke: what may be repeated waits for the next one."""
        flow = self._flows.get(link.node)
        if flow is not None:
            # Replies of the broken connection that were not taken in yet are asked for again with the rest.
            # In place: this may be in the middle of a turn over them.
            others = [reply for reply in self._replies if reply[0] != link.node]
            self._replies.clear()
            self._replies.extend(others)
            for exchange in flow.handle_down():
                exchange.handle_failure(None, f"the connection to node {link.node!r} broke")

    def handle_refused(self, link: Link, reason: str) -> None:
        """A node does not take this router."""
        self._refusals[link.node or link.endpoint] = reason
        self._welcomed.set()

    def note_version(self, store: str, shard: int, version: int) -> None:
        """Take note of a version that a shard has reached."""
        key = (store, shard)
        self._versions[key] = max(version, self._versions.get(key, 0))

    def version_seen(self, store: str, shard: int) -> int:
        """Return the newest version of a shard that this router was told of, 0 for none."""
        return self._versions.get((store, shard), 0)

    def is_up(self, node: str) -> bool:
        """Return whether a node is connected."""
        flow = self._flows.get(node)
        return flow is not None and flow.up

    def close(self) -> None:
        """Close every connection; what is on its way fails."""
        if self.closed:
            return
        self.closed = True
        # Exchanges first: whoever waits is told before the links say that they are down.
        for flow in self._flows.values():
            for exchange in flow.drain():
                exchange.handle_failure(None, "the cluster was closed")
        for link in self._links.values():
            link.close()
        if self._bootstrap is not None:
            self._bootstrap.close()
        self._replies.clear()
        self._sockets.close()

    # --- requests ---

    def submit(self, exchanges: Iterable[Exchange]) -> None:
        """Send exchanges, each when its node's window has room for it."""
        nodes: list[str] = []
        for exchange in exchanges:
            flow = self._flows.get(exchange.node)
            if flow is None:
                # A node that the placement names and the topology at hand does not: it may yet be learned of.
                flow = self._flows[exchange.node] = NodeFlow()
            flow.add(exchange)
            nodes.append(exchange.node)
        # In the order given, which goes round the nodes: none waits for another's share to be encoded.
        for node in nodes:
            self._send_next(node)

    def cancel(self, exchanges: Iterable[Exchange]) -> bool:
        """Forget exchanges that nobody waits for any more; their replies are ignored. Return whether any was sent."""
        sent = False
        nodes: dict[str, None] = {}
        for exchange in exchanges:
            sent |= self._flows[exchange.node].cancel(exchange)
            nodes[exchange.node] = None
        for node in nodes:
            self._pump(node)
        return sent

    def _pump(self, node: str) -> None:
        while self._send_next(node):
            pass

    def _send_next(self, node: str) -> bool:
        flow = self._flows[node]
        exchange = flow.poll_send()
        if exchange is None:
            return False
        budget_us = int((exchange.deadline - time.monotonic()) * 1e6)
        if budget_us <= 0:
            flow.handle_answered(exchange.number)  # its owner's timer is about to say so
            return True
        if self._links[node].send(exchange.encode(budget_us)):
            return True
        flow.handle_unsent(exchange)
        return False

    # --- replies ---

    def handle_frames(self, link: Link, frames: list[memoryview]) -> None:
        """Replies came in from a node."""
        self._replies.extend([(link.node, frame) for frame in frames])
        if not self._turn_scheduled:
            self._turn()

    def _turn(self) -> None:
        self._turn_scheduled = False
        replies = self._replies
        for _ in range(_TURN_FRAMES_MAX):
            if not replies:
                return
            node, frame = replies.popleft()
            self._handle_frame(node, frame)
        if replies and not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _handle_frame(self, node: str, frame: memoryview) -> None:
        try:
            reply: Reply = decode_reply(frame)
        except ProtocolError as error:
            self._stray(node, str(error))
            return
        if isinstance(reply, Welcome):
            return
        flow = self._flows[node]
        exchange = flow.find(reply.request)
        if isinstance(reply, Fault):
            self._handle_fault(node, flow, exchange, reply)
            return
        if exchange is None:
            self.stray_replies += 1  # late: its deadline has passed
            return
        try:
            last = exchange.handle_reply(reply)
        except ProtocolError as error:
            self._stray(node, str(error))
            last = True
            exchange.handle_failure(None, f"node {node!r} answered something else: {error}")
        if last:
            flow.handle_answered(exchange.number)
            self._pump(node)

    def _handle_fault(self, node: str, flow: NodeFlow[Exchange], exchange: Exchange | None, fault: Fault) -> None:
        if fault.code == FaultCode.NO_HELLO:
            self._links[node].reopen()  # the node has forgotten this router: begin again, and repeat what may be
        elif exchange is not None:
            flow.handle_answered(exchange.number)
            exchange.handle_failure(_fault_code(fault.code), fault.detail)
            self._pump(node)

    def _stray(self, node: str, reason: str) -> None:
        self.stray_replies += 1
        _log.warning("reply is ignored", extra={"node": node, "detail": reason})


def _require_placed(topology: Topology, placement: Placement) -> None:
    """Refuse a topology by which fragments would be looked for where they are not. One that knows less is fine."""
    for kind, spec in topology.kinds.items():
        store = placement.kinds.get(kind)
        if store is None:
            raise PlacementError(
                f"cluster {placement.cluster!r} does not know kind {kind!r} of this topology; restart its nodes with it"
            )
        if store != spec.store:
            raise PlacementError(
                f"kind {kind!r} is kept in store {store!r} of cluster {placement.cluster!r}, this topology says "
                f"{spec.store!r}; use the topology that the cluster was started with"
            )


def _fault_code(code: int) -> FaultCode:
    try:
        return FaultCode(code)
    except ValueError:
        return FaultCode.INTERNAL
