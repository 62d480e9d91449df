"""A node of the simulation: the real request server over images in memory, on a processor and a disk of its own.

The node's work takes its own time, while everybody else's goes on: its loop is busy until then. It may be stopped, as
by SIGSTOP, slowed down, or killed and started again with all that was committed before.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

from dawnchorus.fragment_stores.apply_write import apply_write
from dawnchorus.fragment_stores.image_batch import ImageBatch, ImageList, PendingBatch, join_lists
from dawnchorus.nodes.read_path import Read
from dawnchorus.nodes.shard_table import OwnedShard
from dawnchorus.wire.cluster.placement import Placement, encode_placement
from dawnchorus.wire.cluster.topology import Topology, encode_topology
from dawnchorus.wire.descriptors import Reserve
from dawnchorus.wire.protocol.limits import FRAME_BYTES_MAX
from dawnchorus.wire.protocol.messages import (
    Commit,
    CommitReply,
    CommitReplySection,
    CommitSection,
    Fault,
    FaultCode,
    Fetch,
    Hello,
    Rejection,
    SectionStatus,
    Status,
    StatusReply,
    Welcome,
    Write,
)
from dawnchorus.wire.transport.acceptance import Acceptance
from dawnchorus.wire.transport.channel import Sent
from dawnchorus.wire.transport.counters import ServerCounters
from dawnchorus.wire.transport.handlers import Handler
from dawnchorus.wire.transport.request_queue import Call
from dawnchorus.wire.transport.request_server import RequestServer
from tests.simulation.fair_turns import FairTurns
from tests.simulation.processor import Processor
from tests.support.memory_network import Listener, Network

__all__ = ["SimulatedNode"]

_AGENT_S: Final = 20e-6
_REQUEST_S: Final = 100e-6
_SYNC_S: Final = 0.002
"""Times that one agent's image, one request and one sync of the disk take."""

_REPLIES_MAX: Final = 16
"""Frames that wait for a router before its peer is blocked, as a ROUTER socket has it."""


class SimulatedNode:
    """One node; `images`, `versions` and `applied` are on its disk."""

    def __init__(
        self,
        network: Network,
        topology: Topology,
        placement: Placement,
        name: str,
        note: Callable[[str], None],
        chance: random.Random,
    ) -> None:
        self.name = name
        self.endpoint = topology.nodes[name].endpoint
        self._network = network
        self._topology = topology
        self._placement = placement
        self._note = note
        self._chance = chance
        self.images: dict[tuple[str, bytes], bytes] = {}
        self.applied: dict[tuple[str, bytes], int | Rejection] = {}
        self.version = placement.generation << 40
        self.slowness = 1.0
        """How many times longer everything takes."""
        self.failing = 0.0
        """The share of requests that it answers with a fault of its own."""
        self.coldness = 0.0
        """The share of reads that wait for its disk."""
        self.turns = FairTurns(name)
        self.shards = {
            (store, shard): OwnedShard(
                store, shard, owner.serving_epoch, frozenset(topology.kinds_of(store)), self._reader(store)
            )
            for store, owners in placement.shards.items()
            for shard, owner in enumerate(owners)
            if owner.node == name
        }
        self._disk_free_at = 0.0
        self._up = False

    def _reader(self, store: str) -> Any:
        return _MemoryShard(self, store)

    # --- its life ---

    def start(self) -> None:
        """Listen and serve; earlier routers are forgotten."""
        self._up = True
        self.processor = Processor(self._network.loop)
        self.turns.forget()
        self._server = RequestServer(
            self.processor,
            {
                Fetch: Handler(self._handle_fetch),
                Commit: Handler(self._handle_commit, always=True),
                Status: Handler(self._handle_status),
            },
            self,
            Acceptance(lambda _shut: None, limit=10_000, free=lambda: 10, count=lambda: 0, reserve=_NoReserve()),
            ServerCounters(),
            monotonic=self.processor.monotonic,
        )
        self._server.start(self._open)

    def kill(self) -> None:
        """End it at once: frames on their way are lost, its disk stays."""
        self._up = False
        self.processor.end()
        self._listener.close()
        self._server.close()

    def stop(self) -> None:
        """Stop, as at SIGSTOP: frames wait in its connections."""
        self.processor.stop()
        for connection in self._listener.connections():
            connection.to_node.is_stopped = True

    def go_on(self) -> None:
        """Continue after a stop."""
        self.processor.go_on()
        for connection in self._listener.connections():
            connection.to_node.go_on()

    @property
    def is_up(self) -> bool:
        """Whether it serves, or would if it were not stopped."""
        return self._up

    def break_connections(self, chance: random.Random, share: float) -> None:
        """Break some of its connections."""
        for connection in self._listener.connections():
            if chance.random() < share:
                connection.break_off()
                self.processor.call_soon(self._handle_ended)

    def _open(
        self, handle_messages: Callable[[list[list[bytes]]], None], handle_ended: Callable[[], None]
    ) -> "SimulatedNode":
        self._handle_ended = handle_ended

        def deliver(messages: list[list[bytes]]) -> None:
            def handle() -> None:
                for peer, frame in messages:
                    self.turns.handle_arrival(peer, frame)
                handle_messages(messages)

            self.processor.call_soon(handle)

        self._listener = Listener(self._network, [self.endpoint], deliver)
        return self

    # --- the channel of its server ---

    def send_to(self, identity: bytes, frame: bytes) -> Sent:
        """Send a frame once the processor has made it; reject it if its router does not read."""
        connection = self._network.connections.get(identity)
        if connection is not None and len(connection.to_router) >= _REPLIES_MAX:
            self.turns.handle_blocked(identity)
            return Sent.FULL
        return self._listener.send_to(identity, frame, self.processor.ahead_s)

    def poll(self) -> None:
        """Return nothing: each frame was delivered when it came."""

    def close(self) -> None:
        """Do nothing: no frame is delivered once the processor has ended."""

    # --- its greetings ---

    def rejection(self, hello: Hello) -> Fault | None:
        """Welcome everybody."""
        return None

    def welcome(self, *, ipc: bool) -> Welcome:
        """Return the Welcome of this moment."""
        placement, topology = encode_placement(self._placement), encode_topology(self._topology)
        return Welcome(self.name, self._placement.cluster_uuid, placement, topology, "", FRAME_BYTES_MAX, [], "")

    # --- its handlers ---

    def wait_for_disk(self, found: Callable[[], ImageBatch]) -> PendingBatch | None:
        """Return a pending batch if a read has to wait; some of these have to read again instead."""
        if self._chance.random() >= self.coldness:
            return None
        pending: PendingBatch = Future()

        def finish() -> None:
            pending.set_result(found() if self._chance.random() < 0.5 else None)

        self.processor.call_later(self._chance.expovariate(1 / 0.003) * self.slowness, finish)
        return pending

    def resume(self, call: Call) -> None:
        """Resume a call that was parked."""
        self.processor.call_soon(lambda: self._server.resume(call))

    def work(self, seconds: float) -> None:
        """Let the processor be busy for a while."""
        self.processor.work(seconds * self.slowness)

    def _handle_status(self, call: Call, request: Status) -> StatusReply:
        self.turns.handle_turn(call.peer, request.request, last=True)
        self.work(_REQUEST_S)
        return StatusReply(request.request, self.name, 0, 0, 0, [], {})

    def _fault(self, call: Call, request: Fetch | Commit) -> Fault | None:
        self._note(f"{self.name} {type(request).__name__} {request.request}")
        self.work(_REQUEST_S)
        if self._chance.random() >= self.failing:
            return None
        self.turns.handle_turn(call.peer, request.request, last=True)
        return Fault(request.request, FaultCode.INTERNAL, "as the simulation wants it")

    def _handle_fetch(self, call: Call, request: Fetch) -> "Fault | _Images":
        if (fault := self._fault(call, request)) is not None:
            return fault
        return _Images(self, request)

    def _handle_commit(self, call: Call, commit: Commit) -> Fault | None:
        if (fault := self._fault(call, commit)) is not None:
            return fault
        self.turns.handle_turn(call.peer, commit.request, last=True)
        now = self.processor.monotonic()
        self._disk_free_at = max(now, self._disk_free_at) + _SYNC_S * self.slowness

        def finish() -> None:
            sections = [self._commit(index, section, call) for index, section in enumerate(commit.sections)]
            self._server.reply(call.peer, CommitReply(commit.request, sections))

        self.processor.call_later(self._disk_free_at - now, finish)
        return None

    def _commit(self, index: int, section: CommitSection, call: Call) -> CommitReplySection:
        if self.processor.monotonic() > call.deadline:
            return CommitReplySection(index, SectionStatus.TOO_LATE, self.version, [])
        results = [self._apply(section.store, write) for write in section.writes]
        return CommitReplySection(index, SectionStatus.OK, self.version, results)

    def _apply(self, store: str, write: Write) -> int | Rejection:
        before = self.applied.get((store, write.write_id))
        if before is not None:
            return before
        key = store, write.agent
        self.version += 1
        made = apply_write(self.images.get(key), write, self.version, int(self.processor.monotonic() * 1_000))
        result: int | Rejection = self.version
        if isinstance(made, Rejection):
            result = made
        elif made is None:
            self.images.pop(key, None)
        else:
            self.images[key] = bytes(made)
        self.applied[store, write.write_id] = result
        return result


class _Images:
    """The frames of a fetch, as the node's read path makes them."""

    def __init__(self, node: SimulatedNode, request: Fetch) -> None:
        self._node = node
        self._read = Read(request, node.shards)

    def next_frame(self, call: Call) -> tuple[bytes, bool] | None:
        """Return the next frame, and whether it is the last; None while its reads are pending."""
        node, before = self._node, self._read.agents_read
        made = self._read.next_frame(int(node.processor.monotonic() * 1_000))
        if made is None:
            node.turns.handle_parked(call.peer, self._read.request)
            self._read.when_ready(lambda _done: node.resume(call))
            return None
        frame, last = made
        node.turns.handle_turn(call.peer, self._read.request, last=last)
        node.work(_AGENT_S * (self._read.agents_read - before))
        return frame, last


class _MemoryShard:
    """The reader of one shard, over the images that its node has on its disk."""

    def __init__(self, node: SimulatedNode, store: str) -> None:
        self._node = node
        self._store = store

    def read(
        self, agents: Sequence[bytes], kinds: frozenset[str] | None = None, known: Sequence[int] | None = None
    ) -> ImageBatch | PendingBatch:
        """Return the present images, or those of a moment later if they have to be read from the disk."""

        def found() -> ImageBatch:
            images: list[bytes | memoryview] = [self._node.images.get((self._store, agent), b"") for agent in agents]
            return ImageList(images, self._node.version, kinds, known)

        return self._node.wait_for_disk(found) or found()

    def join(self, head: bytes, batches: Sequence[ImageBatch]) -> bytes:
        """Return a frame."""
        return join_lists(head, batches)


class _NoReserve(Reserve):
    """Descriptors of a node that has none."""

    def take(self, count: int) -> None:
        """Hold none."""
