"""Nodes in the test's own event loop, which keep images in memory and answer as a test says.

On a loop whose time is virtual their connections are in memory too, on any other they are sockets.

A fake node serves agents as a real one does. A test may hold its answers back (`hold`, `release`), put an answer of its
own in their place (`answer`), or look at what was asked (`requests`).
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, TypeVar, cast

import msgspec
import zmq

import dawnchorus
from dawnchorus import AgentState, Cluster, WakeIncomplete
from dawnchorus.perf.harness.topologies import free_ports
from dawnchorus.wire.cluster.placement import Placement, encode_placement, initial_placement, with_new_generation
from dawnchorus.wire.cluster.topology import BreakerSpec, KindSpec, NodeSpec, StoreSpec, Topology, encode_topology
from dawnchorus.wire.protocol.image import Fragment, decode_image, encode_image, select_kinds
from dawnchorus.wire.protocol.limits import FRAME_BYTES_MAX
from dawnchorus.wire.protocol.messages import (
    PONG,
    Cancel,
    Commit,
    CommitReply,
    CommitReplySection,
    CommitSection,
    DeleteAgent,
    Fault,
    FaultCode,
    Fetch,
    Hello,
    ImageSection,
    Ping,
    Put,
    Rejection,
    RejectionCode,
    Reply,
    Request,
    Scan,
    ScanReply,
    SectionStatus,
    Status,
    StatusReply,
    Welcome,
    Write,
    decode_request,
    encode,
    encode_fetch_reply_head,
)
from dawnchorus.wire.protocol.shard_hash import shard_of
from dawnchorus.wire.transport.channel import Channel, Sent
from dawnchorus.wire.transport.sockets import SocketOwner, bind
from tests.support.clusters import eventually
from tests.support.internals import open_routers_on, sendings
from tests.support.memory_network import Listener, is_real_loop, network

__all__ = [
    "NEVER_OPENS",
    "FakeNode",
    "FakeNodes",
    "connect",
    "fake_client",
    "fake_cluster",
    "fake_topology",
    "images_frame",
    "placement_of",
    "rejecting",
    "wake_lacking",
]

CLUSTER_UUID = "0123456789abcdef" * 2

R = TypeVar("R", Hello, Fetch, Commit, Scan, Status, Cancel)


NEVER_OPENS = BreakerSpec(requests_min=1_000_000, consecutive_timeouts=1_000_000)
"""The breaker of tests about other things: their nodes fail as often as they like."""


_made_up_ports: Final = itertools.count(10_001)


def fake_topology(
    *,
    kinds: Mapping[str, KindSpec] | None = None,
    shards: Mapping[str, int] | None = None,
    name: str = "fake",
    ports: Sequence[int] | None = None,
    **settings: Any,
) -> Topology:
    """Return a topology with one node for each store: profile, session and history, a store each.

    Nodes are on free ports of this host if a real loop runs; else on ports that are made up, if none are given.
    `settings` are further fields of the topology.
    """
    kinds = kinds or {"profile": KindSpec("id", required=True), "session": KindSpec("live"), "history": KindSpec("old")}
    stores = list(dict.fromkeys(spec.store for spec in kinds.values()))
    if ports is None:
        ports = free_ports(len(stores)) if is_real_loop() else [next(_made_up_ports) for _ in stores]
    return Topology(
        name,
        stores=settings.pop("stores", None)
        or {store: StoreSpec(shards=(shards or {}).get(store, 2)) for store in stores},
        kinds=kinds,
        nodes={
            f"{store}-1": NodeSpec(f"{store}-1", f"tcp://127.0.0.1:{port}", (store,))
            for store, port in zip(stores, ports, strict=True)
        },
        **cast("dict[str, Any]", {"breaker": NEVER_OPENS, **settings}),
    )


def placement_of(topology: Topology, cluster_uuid: str = CLUSTER_UUID) -> Placement:
    """Return the placement of a topology whose nodes have all started once."""
    placement = initial_placement(topology, cluster_uuid)
    for node in topology.nodes:
        placement = with_new_generation(placement, node)
    return placement


def images_frame(
    request: int,
    sections: Sequence[tuple[int, int, int, Sequence[bytes | None]]],
    *,
    last: bool = True,
    now_ms: int | None = None,
    status: int = SectionStatus.OK,
) -> bytes:
    """Return the frame of a FetchReply; a section is (index, offset, shard version, images)."""
    made = [
        ImageSection(index, offset, status, version, [len(image or b"") for image in images])
        for index, offset, version, images in sections
    ]
    body = b"".join([image for *_, images in sections for image in images if image])
    clock_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    return encode_fetch_reply_head(request, clock_ms, made, last, len(body)) + body


class FakeNode:
    """One node of a topology: `images` by store and agent, its shards' newest version, and what it was asked."""

    def __init__(self, topology: Topology, placement: Placement, name: str, *, ipc: str = "") -> None:
        self.topology = topology
        self.placement = placement
        self.name = name
        self.ipc = ipc
        self.directory = ""
        self.images: dict[tuple[str, bytes], bytes] = {}
        self.version = placement.generation << 40
        self.applied: dict[bytes, int] = {}
        """Version by write id: a write sent twice is applied once."""
        self.expects = False
        """Whether a write is rejected if other versions are there than it expects."""
        self.requests: list[Request] = []
        self.peers: list[bytes] = []
        """Who sent each of the requests."""
        self.hold: set[type[Request]] = set()
        """Kinds of requests whose answers wait for `release`; they are made when the request comes in."""
        self.held: list[tuple[bytes, list[bytes]]] = []
        self.answer: Callable[[Request], list[bytes]] = self.serve
        """The function that answers a request, frame by frame; a test may replace it."""
        self._sockets: SocketOwner | None = None
        self._channel: Channel[list[bytes]] | Listener | None = None
        self._waiting: dict[bytes, deque[bytes]] = {}

    # --- its life ---

    def start(self) -> None:
        """Bind and serve; again after `stop`."""
        endpoints = [self.topology.nodes[self.name].endpoint, *([self.ipc] if self.ipc else [])]
        memory = network()
        if memory is not None:
            self._channel = Listener(memory, endpoints, self._handle_messages)
            return
        self._sockets = SocketOwner()
        replies = self._sockets.router()
        for endpoint in endpoints:
            bind(replies, endpoint)
        self._channel = Channel(asyncio.get_running_loop(), replies, _receive, self._handle_messages)

    def stop(self) -> None:
        """Break every connection; held answers are lost."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
        self.held.clear()

    def _handle_messages(self, messages: list[list[bytes]]) -> None:
        for peer, frame in messages:
            request = decode_request(frame)
            if isinstance(request, Ping):
                self._send(peer, [PONG])
                continue
            self.requests.append(request)
            self.peers.append(peer)
            if isinstance(request, Cancel):
                continue
            frames = self.answer(request)
            if type(request) in self.hold:
                self.held.append((peer, frames))
            else:
                self._send(peer, frames)

    def _send(self, peer: bytes, frames: list[bytes]) -> None:
        waiting = self._waiting.get(peer)
        if waiting is not None:
            waiting.extend(frames)
            return
        self._waiting[peer] = deque(frames)
        self._send_waiting(peer)

    def _send_waiting(self, peer: bytes) -> None:
        """Send what waits for a peer, in order; if it has no room, as on a busy machine, go on a moment later."""
        waiting = self._waiting[peer]
        while waiting and self._channel is not None:
            if self._channel.send_to(peer, waiting[0]) is Sent.FULL:
                asyncio.get_running_loop().call_later(0.001, self._send_waiting, peer)
                return
            waiting.popleft()
        del self._waiting[peer]

    def release(self, number: int | None = None) -> None:
        """Send the held answers, the first `number` of them; if all, later requests are answered at once."""
        if number is None:
            self.hold.clear()
        released, self.held = self.held[:number], self.held[len(self.held) if number is None else number :]
        for peer, frames in released:
            self._send(peer, frames)

    def release_while_stalled(self) -> None:
        """Send all held answers while the loop stalls and reads none: wait for room for each."""
        if network() is not None:
            self.release()
            return
        self.hold.clear()
        held, self.held = self.held, []
        assert self._channel is not None
        for peer, frames in held:
            for frame in frames:
                while self._channel.send_to(peer, frame) is Sent.FULL:
                    time.sleep(0.001)

    def asked(self, kind: type[R]) -> list[R]:
        """Return the requests of one kind, in the order in which they came."""
        return [request for request in self.requests if isinstance(request, kind)]

    # --- its agents ---

    def put(self, agent_id: str, **values: object) -> int:
        """Keep values of an agent, as a save of another client would; return the version."""
        version = 0
        for kind, value in values.items():
            store = self.topology.kinds[kind].store
            put = Put(kind, 0, 1, msgspec.msgpack.encode(value))
            version = self.write(store, Write(agent_id.encode(), b"", 0, [put]))
        return version

    def write(self, store: str, write: Write) -> int:
        """Apply a write; return its version."""
        self.version += 1
        key = (store, write.agent)
        fragments = decode_image(self.images[key]) if key in self.images else {}
        for operation in write.operations:
            if isinstance(operation, Put):
                fragment = Fragment(self.version, operation.schema, operation.encoding, 0, 0, operation.value)
                fragments = {**fragments, operation.kind: fragment}
            elif isinstance(operation, DeleteAgent):
                fragments = {}
            else:
                fragments.pop(operation.kind, None)
        if fragments:
            self.images[key] = encode_image(self.version, fragments)
        else:
            self.images.pop(key, None)
        return self.version

    # --- its answers ---

    def serve(self, request: Request) -> list[bytes]:
        """Answer as a real node does."""
        if isinstance(request, Fetch):
            sections = [
                (index, 0, self.version, [self._image(section.store, agent, request.kinds) for agent in section.agents])
                for index, section in enumerate(request.sections)
            ]
            return [images_frame(request.request, sections)]
        return [encode(self._reply(request))]

    def _reply(self, request: Request) -> Reply:
        if isinstance(request, Hello):
            placement, topology = encode_placement(self.placement), encode_topology(self.topology)
            uuid = self.placement.cluster_uuid
            return Welcome(self.name, uuid, placement, topology, self.ipc, FRAME_BYTES_MAX, [], self.directory)
        if isinstance(request, Commit):
            committed = [self._commit(index, section) for index, section in enumerate(request.sections)]
            return CommitReply(request.request, committed)
        if isinstance(request, Scan):
            shards = self.topology.stores[request.store].shards
            after = sorted(
                agent
                for store, agent in self.images
                if store == request.store and shard_of(agent, shards) == request.shard and agent > request.position
            )
            wanted = list(takewhile(lambda agent: agent.startswith(request.prefix), after))
            page = wanted[: request.agents_max]
            return ScanReply(request.request, SectionStatus.OK, page, len(page) == len(wanted))
        assert isinstance(request, Status), "a fake node keeps no backups, and leaves what is cancelled"
        return StatusReply(request.request, self.name, 0, 0, 0, [], {})

    def _commit(self, index: int, section: CommitSection) -> CommitReplySection:
        results: list[int | Rejection] = []
        for write in section.writes:
            found = self._found(section.store, write)
            if self.expects and write.write_id not in self.applied and found != (write.expect or {}):
                results.append(Rejection("other versions are there", RejectionCode.CONFLICT, found))
                continue
            if write.write_id not in self.applied:
                self.applied[write.write_id] = self.write(section.store, write)
            results.append(self.applied[write.write_id])
        return CommitReplySection(index, SectionStatus.OK, self.version, results)

    def _found(self, store: str, write: Write) -> dict[str, int]:
        """Return the present versions of the kinds of which a write expects some."""
        image = self.images.get((store, write.agent))
        fragments = decode_image(image) if image else {}
        return {kind: fragments[kind].version if kind in fragments else 0 for kind in write.expect or {}}

    def _image(self, store: str, agent: bytes, kinds: list[str] | None) -> bytes | None:
        image = self.images.get((store, agent))
        return image if image is None or kinds is None else select_kinds(image, kinds)


def _receive(raw: zmq.Socket[bytes]) -> list[bytes]:
    return raw.recv_multipart(zmq.NOBLOCK)


class FakeNodes(dict[str, FakeNode]):
    """The nodes of one cluster, by the name of the store that each keeps."""

    def fetches(self) -> list[Fetch]:
        """Return every Fetch that any node received."""
        return [fetch for node in self.values() for fetch in node.asked(Fetch)]

    def agents_fetched(self, store: str) -> list[bytes]:
        """Return the agents that a store was asked for, in order, as often as it was."""
        return [agent for fetch in self[store].asked(Fetch) for section in fetch.sections for agent in section.agents]

    async def read_everything(self, cluster: Cluster) -> None:
        """Wait until all that their only client sent has come to them: a wake that ends in a stall ends before that."""

        def came() -> int:
            requests = [request for node in self.values() for request in node.requests]
            return sum(not isinstance(request, Hello | Cancel | Ping) for request in requests)

        await eventually(lambda: came() == sendings(cluster).all)

    def put(self, agent_id: str, **values: object) -> None:
        """Keep values of an agent, each in its store."""
        for kind, value in values.items():
            node = next(iter(self.values()))
            self[node.topology.kinds[kind].store].put(agent_id, **{kind: value})


def connect(source: Topology | str, **options: Any) -> Cluster:
    """Return a client to be opened, as `dawnchorus.connect` does, that finds fake nodes."""
    cluster = dawnchorus.connect(source, **options)
    memory = network()
    if memory is not None:
        open_routers_on(cluster, memory)
    return cluster


@contextlib.asynccontextmanager
async def fake_client(
    kinds: Mapping[str, KindSpec] | None = None, shards: Mapping[str, int] | None = None, **settings: Any
) -> AsyncGenerator[tuple[Cluster, FakeNodes]]:
    """Connect a client to fake nodes, one for each store: id, live and old, if no other kinds are given."""
    topology = fake_topology(kinds=kinds, shards=shards, **settings)
    async with fake_cluster(topology) as nodes, connect(topology) as cluster:
        yield cluster, nodes


def rejecting(
    code: FaultCode, *requests: type[Request], retry_after_s: float = 0.0
) -> Callable[[Request], list[bytes]]:
    """Return an `answer` that rejects requests of these types."""

    def answer(request: Request) -> list[bytes]:
        assert isinstance(request, requests), f"not meant for {request}"
        assert not isinstance(request, Hello | Cancel | Ping)
        return [encode(Fault(request.request, code, "as the test wants it", int(retry_after_s * 1e6)))]

    return answer


async def wake_lacking(cluster: Cluster, agent_id: str, kind: str) -> AgentState:
    """Return a state that lacks one kind, whose node does not answer, and nothing else: that of a wake at its deadline.

    In a stall of this process the deadline comes before the answers of the others too: then the agent is woken again.
    """
    for _ in range(100):
        with contextlib.suppress(WakeIncomplete):
            state = await cluster.wake(agent_id, deadline_s=0.1)
            if state.degraded == (kind,):
                return state
    raise AssertionError(f"no wake lacks {kind} and nothing else")


@contextlib.asynccontextmanager
async def fake_cluster(topology: Topology) -> AsyncGenerator[FakeNodes]:
    """Run a fake node for each node of the topology, by the name of its first store."""
    placement = placement_of(topology)
    nodes = FakeNodes({node.stores[0]: FakeNode(topology, placement, name) for name, node in topology.nodes.items()})
    try:
        for node in nodes.values():
            node.start()
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()
