"""Nodes without a router: a node in this process or in one of its own, and a client that speaks bare messages to it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from dawnchorus.nodes.group_commit import QUEUE_BYTES_MAX
from dawnchorus.nodes.node import FragmentNode, Transport
from dawnchorus.nodes.shard_table import OwnedShard, any_shard_on_disk, begin_generation, close_shards, open_shards
from dawnchorus.wire.cluster.control_store import establish_placement, take_generation
from dawnchorus.wire.cluster.file_control_store import FileControlStore
from dawnchorus.wire.cluster.topology import Topology
from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.protocol.messages import (
    ABSENT,
    PONG,
    PROTOCOL,
    UNCHANGED,
    Commit,
    CommitReply,
    CommitSection,
    Fetch,
    FetchReply,
    FetchSection,
    Hello,
    Message,
    Put,
    Reply,
    SectionStatus,
    Status,
    StatusReply,
    Welcome,
    Write,
    decode_reply,
    encode,
)
from dawnchorus.wire.protocol.shard_hash import shard_of
from dawnchorus.wire.transport.channel import Channel, receive_parts
from dawnchorus.wire.transport.reply_queues import PEERS_MAX
from dawnchorus.wire.transport.sockets import SocketOwner
from tests.support.clusters import write_topology
from tests.support.write_ids import new_write_id

__all__ = [
    "ALL_STORES",
    "BUDGET_US",
    "NODE",
    "PATIENCE_S",
    "SHARDS",
    "NodeProcess",
    "RawClient",
    "Served",
    "commit_of",
    "fetch_of",
    "images_in",
    "make_topology",
    "served",
    "until",
]

NODE = "all-1"
ALL_STORES: Mapping[str, Sequence[str]] = {NODE: ["identity", "live", "archive"]}
SHARDS = 2

PATIENCE_S = 60.0
"""How long a test waits for an event that has to come; nothing is measured with it."""

BUDGET_US = 60_000_000

T = TypeVar("T", bound=msgspec.Struct)


def make_topology(
    directory: Path, *, shards: int = SHARDS, nodes: Mapping[str, Sequence[str]] = ALL_STORES, name: str = "test"
) -> Topology:
    """Write and return the topology of one node with all three stores, two shards each, in the directory."""
    return load_topology(write_topology(directory, name=name, shards=shards, nodes=nodes))


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


# --- requests and their replies ---


def fetch_of(agents: Iterable[bytes], *, request: int = 1, store: str = "live", **fields: Any) -> Fetch:
    """Return a fetch of agents of one store, a section for each shard."""
    by_shard: dict[int, list[bytes]] = {}
    for agent in agents:
        by_shard.setdefault(shard_of(agent, SHARDS), []).append(agent)
    sections = [FetchSection(store, shard, 1, asked) for shard, asked in sorted(by_shard.items())]
    budget_us, sent_us = fields.pop("budget_us", BUDGET_US), fields.pop("sent_us", 0)
    return Fetch(request, budget_us, sent_us, None, sections, **fields)


def commit_of(values: dict[bytes, bytes], *, request: int = 1, store: str = "live", kind: str = "session") -> Commit:
    """Return a commit of one kind of each agent, a section for each shard."""
    by_shard: dict[int, list[Write]] = {}
    for agent, value in values.items():
        write = Write(agent, new_write_id(), 0, [Put(kind, 0, 0, value)])
        by_shard.setdefault(shard_of(agent, SHARDS), []).append(write)
    sections = [CommitSection(store, shard, 1, writes) for shard, writes in sorted(by_shard.items())]
    return Commit(request, BUDGET_US, 0, None, sections)


def images_in(fetch: Fetch, replies: Sequence[FetchReply]) -> dict[bytes, bytes | int]:
    """Return each agent's image, or ABSENT or UNCHANGED; fail unless the replies answer each agent once."""
    found: dict[bytes, bytes | int] = {}
    for number, reply in enumerate(replies):
        assert reply.request == fetch.request
        assert reply.last == (number == len(replies) - 1)
        body, position = bytes(reply.body), 0
        for section in reply.sections:
            assert section.status == SectionStatus.OK
            agents = fetch.sections[section.index].agents[section.offset : section.offset + len(section.sizes)]
            for agent, size in zip(agents, section.sizes, strict=True):
                assert agent not in found
                found[agent] = body[position : position + size] if size > 0 else size
                position += max(size, 0)
        assert position == len(body)
    assert set(found) == {agent for section in fetch.sections for agent in section.agents}
    assert ABSENT == 0 > UNCHANGED
    return found


class RawClient:
    """One DEALER in the test's loop that sends whatever it is given, also malformed frames."""

    def __init__(self, endpoint: str) -> None:
        self._owner = SocketOwner()
        self._raw = self._owner.dealer(endpoint)
        self._received: asyncio.Queue[bytes] = asyncio.Queue()
        self._channel = Channel(asyncio.get_running_loop(), self._raw, receive_parts, self._handle)

    def _handle(self, messages: list[list[bytes]]) -> None:
        for message in messages:
            if message[-1] != PONG:  # unasked: a test's client is often silent
                self._received.put_nowait(message[-1])

    def send(self, *frames: bytes) -> None:
        """Send one message of these frames."""
        self._raw.send_multipart(frames)
        self._channel.poll()  # sending may swallow the edge that says that something has come

    async def receive(self) -> Reply:
        """Return the next reply, whatever it answers."""
        async with asyncio.timeout(PATIENCE_S):
            return decode_reply(await self._received.get())

    @property
    def waiting(self) -> int:
        """The number of replies that have come and were not taken."""
        return self._received.qsize()

    def drain(self) -> list[Reply]:
        """Take the replies that have come."""
        return [decode_reply(self._received.get_nowait()) for _ in range(self.waiting)]

    async def ask(self, message: Message, kind: type[T]) -> T:
        """Send a message; return the next reply, which has to be of this kind."""
        self.send(encode(message))
        reply = await self.receive()
        assert isinstance(reply, kind), reply
        return reply

    async def hello(self, cluster: str = "") -> Welcome:
        """Begin the connection."""
        return await self.ask(Hello(PROTOCOL, cluster, b"test", ""), Welcome)

    async def fetch(self, fetch: Fetch) -> dict[bytes, bytes | int]:
        """Fetch to the last frame."""
        replies = [await self.ask(fetch, FetchReply)]
        while not replies[-1].last:
            reply = await self.receive()
            assert isinstance(reply, FetchReply), reply
            replies.append(reply)
        return images_in(fetch, replies)

    async def commit(self, values: dict[bytes, bytes], store: str = "live", kind: str = "session") -> CommitReply:
        """Write a kind of some agents; fail if a write is not applied."""
        committed = await self.ask(commit_of(values, store=store, kind=kind), CommitReply)
        for section in committed.sections:
            assert section.status == SectionStatus.OK, section
            assert all(isinstance(result, int) and result for result in section.results), section
        return committed

    async def status(self) -> StatusReply:
        """Return the node's own status."""
        return await self.ask(Status(1, BUDGET_US, 0, None), StatusReply)

    def close(self) -> None:
        """Leave."""
        self._channel.close()
        self._owner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- a node in this process ---


class Served(msgspec.Struct):
    """A node that serves in this event loop."""

    topology: Topology
    node: FragmentNode
    shards: dict[tuple[str, int], OwnedShard]

    @property
    def endpoint(self) -> str:
        """Where it serves."""
        return self.topology.nodes[self.node.name].endpoint


@contextlib.asynccontextmanager
async def served(
    topology: Topology,
    name: str = NODE,
    *,
    ipc: str = "",
    peers_max: int = PEERS_MAX,
    queue_bytes_max: int = QUEUE_BYTES_MAX,
    transport: Transport | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Served]:
    """Serve one node in this loop for a block, after the start-up work of a node's process."""
    control = FileControlStore.in_directory(topology.data_dir)
    placement = await establish_placement(topology, control, lambda: any_shard_on_disk(topology))
    shards = open_shards(topology, placement, name)
    try:
        node = FragmentNode(
            topology,
            placement,
            name,
            shards,
            ipc=ipc,
            peers_max=peers_max,
            queue_bytes_max=queue_bytes_max,
            transport=transport,
            monotonic=monotonic,
        )
        node.bind()
        placement = await take_generation(control, name)
        begin_generation(shards, placement.generation)
        node.start(placement)
        try:
            yield Served(topology, node, shards)
        finally:
            await node.stop()
    finally:
        close_shards(shards)


# --- a node in a process of its own ---

_RUN = """
import sys
from dawnchorus.nodes.node_process import run_node
sys.exit(run_node(sys.argv[1], sys.argv[2], until_stdin_closes=True))
"""


class NodeProcess:
    """A node as a process; it ends with this process in any case, as this one holds its standard input."""

    def __init__(
        self,
        path: Path,
        name: str = NODE,
        *,
        environment: dict[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        """Start it; `under` is a command that runs it, strace for example, and is ended by `close_input` only."""
        self.topology_path = path
        self.process = subprocess.Popen(
            [*under, sys.executable, "-c", _RUN, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
        self.log: list[dict[str, Any]] = []
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def serving(self) -> dict[str, Any]:
        """Wait until it serves; return its status."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the node ended: {self.log}"
        facts: dict[str, Any] = json.loads(line)
        assert facts["event"] == "serving"
        return facts

    def start_failure(self) -> str:
        """Wait until it has failed to start; return why: the last line of its log."""
        assert self.process.wait(PATIENCE_S) == 2, self.log
        self._log_reader.join(PATIENCE_S)
        last = self.log[-1]
        assert (last["level"], last["event"]) == ("error", "failed to start"), self.log
        assert not [line for line in self.log if "trace" in line]
        return str(last["detail"])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal; return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._log_reader.join(PATIENCE_S)
        return code

    def close_input(self) -> int:
        """Let it end as if its launcher had died; return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(PATIENCE_S)
        self._log_reader.join(PATIENCE_S)
        return code

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except json.JSONDecodeError:
                self.log.append({"level": "none", "event": line.decode(errors="replace")})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._log_reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
