"""The nodes of the cluster, and the links to them.

A router begins with a topology, or with the endpoint of any node, whose Welcome brings one. Each node gets a link of
its own, which is kept open until the end. The placement comes with every Welcome; the newest revision counts. So does
the cluster's own topology: the router's, perhaps from an older file, is extended by what it lacks.

A node that serves another cluster, or another data directory than the first that welcomed this router, is rejected: a
copy of a cluster has the same nodes, uuid and ports as the original.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final, Protocol

from ...wire.cluster.placement import Placement, decode_placement, require_placed
from ...wire.cluster.topology import Topology, decode_topology, extend
from ...wire.errors import ClusterUnavailable, PlacementError, TopologyError
from ...wire.protocol.messages import PROTOCOL, Hello, Welcome, encode
from ...wire.repeated_lines import limited_logger
from ...wire.transport.connection import Link, Transport
from ...wire.transport.liveness import LIVENESS_TICK_S
from .judgement import STALL_S

__all__ = ["Membership", "MembershipOwner"]

_CLIENT_BYTES: Final = 8
"""Length of the random name by which a router says that several connections are its own."""

_LATE_GRACE_S: Final = 0.3
"""How long a router goes on connecting whose deadline passed in a stall: a Welcome, and one at the ipc endpoint."""

_log = limited_logger(__name__)


class MembershipOwner(Protocol):
    """The receiver of events and replies of a cluster's nodes."""

    def handle_topology(self, topology: Topology) -> None:
        """Accept the topology that links are made of."""

    def handle_node_up(self, node: str) -> None:
        """Handle a node's welcome: requests can be sent."""

    def handle_node_down(self, node: str) -> None:
        """Handle a broken connection to a node."""

    def handle_node_silent(self, node: str) -> None:
        """Handle a node's silence; the connection is still there."""

    def handle_node_heard(self, node: str) -> None:
        """Handle the end of a node's silence."""

    def handle_node_frames(self, node: str, frames: list[memoryview]) -> None:
        """Receive replies of a node."""


class Membership:
    """The nodes of one cluster, their links, and what their Welcomes said; in the thread of one event loop."""

    def __init__(
        self, owner: MembershipOwner, transport: Transport, clock: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        """`transport` becomes this one's own; `clock` gives seconds on the time axis of the loop's timers."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._clock = clock
        self._chance = chance
        self.links: dict[str, Link] = {}
        """Links by the name of their node."""
        self._bootstrap: Link | None = None
        self._client = secrets.token_bytes(_CLIENT_BYTES)
        self._rejections: dict[str, str] = {}
        self._foreign: set[str] = set()
        """Nodes that are of another cluster or data directory now."""
        self.handle_foreign: Callable[[str | None], None] = lambda _why: None
        """Called with the reason when all nodes are foreign, with None when one no longer is."""
        self._welcomed = asyncio.Event()
        self.topology: Topology | None = None
        """The topology that the client was given, extended by what else the cluster has."""
        self._directory = ""
        """The data directory that this client began with (`wire.cluster.data_directory`)."""
        self.placement: Placement | None = None
        self._versions: dict[tuple[str, int], int] = {}
        self._tick_timer = self._loop.call_later(LIVENESS_TICK_S, self._tick)

    async def connect(self, source: Topology | str, deadline_s: float) -> tuple[Topology, Placement]:
        """Connect to the nodes of a topology, or to those that the node at an endpoint names.

        Returns when every node has welcomed or rejected this router, or at the deadline with those that have.

        Raises:
            ClusterUnavailable: none has.
            PlacementError: the topology contradicts the cluster's placement.
        """
        is_late = False
        if isinstance(source, Topology):
            self._connect_to(source)
        else:
            self._bootstrap = self._link(source, self._hello("", ""))
        end = self._clock() + deadline_s
        while not self._answered():
            self._welcomed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._welcomed.wait()
            except TimeoutError:
                now = self._clock()
                if now - end <= STALL_S or is_late:
                    break
                # This process stalled: replies that came meanwhile have their turn first.
                is_late, end = True, now + _LATE_GRACE_S
        if self.topology is None or self.placement is None:
            raise ClusterUnavailable(self._why_unavailable(source, deadline_s))
        require_placed(self.topology, self.placement)
        return self.topology, self.placement

    def _answered(self) -> bool:
        if not self.links:
            return bool(self._rejections)
        return all([link.up or node in self._rejections for node, link in self.links.items()])

    def _why_unavailable(self, source: Topology | str, deadline_s: float) -> str:
        name = f"cluster {source.name!r}" if isinstance(source, Topology) else source
        if self._rejections:
            return f"{name}: no node takes this client: {'; '.join(sorted(set(self._rejections.values())))}"
        tried = ", ".join([link.endpoint for link in self.links.values()] or [str(source)])
        return f"{name}: no node answered within {deadline_s:g} s ({tried}); is it up? `dawnchorus up` starts it"

    def _connect_to(self, topology: Topology) -> None:
        hello = self._hello(topology.name, (self.topology or topology).digest)
        self.topology = topology
        self._owner.handle_topology(topology)
        for name, node in topology.nodes.items():
            if name not in self.links:
                self.links[name] = self._link(node.endpoint, hello, name)

    def _extend(self, clusters: Topology) -> None:
        """Extend the present topology, perhaps an older one, by the cluster's; connect to its new nodes."""
        assert self.topology is not None, "links of nodes are made from it"
        extended = extend(self.topology, clusters)
        if extended is not self.topology:
            self._connect_to(extended)

    def _link(self, endpoint: str, hello: bytes, node: str = "") -> Link:
        return Link(self._transport, endpoint, hello, self, node, self._chance)

    def _hello(self, cluster: str, digest: str) -> bytes:
        return encode(Hello(PROTOCOL, cluster, self._client, digest))

    def _tick(self) -> None:
        # Set again first: whatever fails in one tick, there is another.
        self._tick_timer = self._loop.call_later(LIVENESS_TICK_S, self._tick)
        for link in [*self.links.values(), *([self._bootstrap] if self._bootstrap is not None else [])]:
            try:
                link.handle_tick()
            except Exception:  # one link's error must not affect the others
                _log.exception("link fails", extra={"node": link.node, "endpoint": link.endpoint})

    # --- events of the links ---

    def handle_up(self, link: Link, welcome: Welcome) -> None:
        """Accept a node's Welcome, or reject its node."""
        try:
            placement = decode_placement(welcome.placement)
            topology = decode_topology(welcome.topology)
        except (PlacementError, TopologyError) as error:
            link.reject(f"the Welcome of node {link.node!r} cannot be read: {error}")
            return
        if self.placement is not None and placement.cluster_uuid != self.placement.cluster_uuid:
            link.reject(
                f"node {link.node!r} is of another cluster ({placement.cluster_uuid}) than this client"
                f" ({self.placement.cluster_uuid}): was it wiped and made anew? Then connect again"
            )
            self._note_foreign(link.node)
            return
        if self._directory and welcome.directory and welcome.directory != self._directory:
            link.reject(
                f"node {link.node!r} at {link.endpoint} serves another data directory ({welcome.directory}) of this"
                f" cluster than this client began with ({self._directory}): a copy beside it, or one that was restored"
                " since; a new connection takes what it finds"
            )
            self._note_foreign(link.node)
            return
        self._directory = self._directory or welcome.directory
        if self.placement is None or placement.revision > self.placement.revision:
            self.placement = placement
        for store, shard, version in welcome.versions:
            self.note_version(store, shard, version)
        if link is self._bootstrap:
            link.close()
            self._bootstrap = None
            self._connect_to(topology)
        else:
            self._rejections.pop(link.node, None)
            if link.node in self._foreign:
                self._foreign.discard(link.node)
                self.handle_foreign(None)
            self._owner.handle_node_up(link.node)
            self._extend(topology)
        self._welcomed.set()

    def _note_foreign(self, node: str) -> None:
        self._foreign.add(node)
        if self._foreign >= self.links.keys():
            self.handle_foreign("; ".join(sorted({self._rejections[node] for node in self._foreign})))

    def handle_down(self, link: Link) -> None:
        """Handle a broken connection to a node."""
        if link is not self._bootstrap:
            self._owner.handle_node_down(link.node)

    def handle_silent(self, link: Link) -> None:
        """Handle a node's silence."""
        if link is not self._bootstrap:
            _log.warning("node is silent", extra={"node": link.node, "endpoint": link.endpoint})
            self._owner.handle_node_silent(link.node)

    def handle_heard(self, link: Link) -> None:
        """Handle the end of a node's silence."""
        if link is not self._bootstrap:
            _log.info("node is no longer silent", extra={"node": link.node, "endpoint": link.endpoint})
            self._owner.handle_node_heard(link.node)

    def handle_rejected(self, link: Link, reason: str) -> None:
        """Note why a node was rejected, or rejected this router."""
        self._rejections[link.node or link.endpoint] = reason
        self._welcomed.set()

    def handle_frames(self, link: Link, frames: list[memoryview]) -> None:
        """Receive replies of a node."""
        self._owner.handle_node_frames(link.node, frames)

    def poll(self) -> None:
        """Receive all replies that have already come."""
        for link in self.links.values():
            link.poll()

    # --- queries ---

    def why_down(self, node: str) -> str:
        """Return why a node is not connected, in its own words or as far as this router knows."""
        return self._rejections.get(node, "it does not answer at all")

    def note_version(self, store: str, shard: int, version: int) -> None:
        """Take note of a version that a shard has reached."""
        key = (store, shard)
        self._versions[key] = max(version, self._versions.get(key, 0))

    def version_seen(self, store: str, shard: int) -> int:
        """Return the newest version of a shard that this router has seen, 0 for none."""
        return self._versions.get((store, shard), 0)

    def close(self) -> None:
        """Close every connection."""
        self._tick_timer.cancel()
        for link in self.links.values():
            link.close()
        if self._bootstrap is not None:
            self._bootstrap.close()
        self._transport.close()
