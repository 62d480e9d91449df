"""One link: its handling of a silent node, and its attempts to reach a node that rejects this router.

The test makes the ticks by which the link judges; a node in memory sends what the test has it send.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from dawnchorus.wire.errors import ClusterUnavailable
from dawnchorus.wire.protocol.messages import (
    PING,
    PONG,
    PROTOCOL,
    Fault,
    FaultCode,
    Hello,
    Status,
    Welcome,
    decode_request,
    encode,
)
from dawnchorus.wire.transport.backoff import Backoff
from dawnchorus.wire.transport.channel import Sent
from dawnchorus.wire.transport.connection import Connection, Link, Transport
from dawnchorus.wire.transport.liveness import SILENT_TICKS
from dawnchorus.wire.transport.socket_connection import SocketTransport
from tests.support.clusters import eventually
from tests.support.memory_network import Listener, network

HELLO = encode(Hello(PROTOCOL, "", b"test", ""))
REQUEST = encode(Status(7, 1_000_000, 0, None))


_ports = itertools.count(10_001)


def free_endpoint() -> str:
    """Return an endpoint on which nothing listens."""
    return f"tcp://127.0.0.1:{next(_ports)}"


def transport() -> Transport:
    """Return connections in memory, or sockets on a real loop."""
    return network() or SocketTransport()


class Node:
    """A node that welcomes every Hello, and otherwise sends what a test has it send."""

    def __init__(self, endpoint: str) -> None:
        memory = network()
        assert memory is not None
        self.channel = Listener(memory, [endpoint], self._handle)
        self.welcomes = True
        self.ipc = ""
        self.peers: list[bytes] = []
        """The peers that said Hello."""
        self.frames: list[bytes] = []
        """The frames that came beside Hellos."""

    def _handle(self, messages: list[list[bytes]]) -> None:
        for peer, frame in messages:
            if frame != HELLO:
                self.frames.append(frame)
                continue
            self.peers.append(peer)
            if self.welcomes:
                self.say(peer, encode(Welcome("n", "u", b"", b"", self.ipc, 1)))

    def say(self, peer: bytes, frame: bytes) -> None:
        assert self.channel.send_to(peer, frame) is Sent.OK

    def close(self) -> None:
        self.channel.close()


class Owner:
    """A link's owner: its notifications, in order."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.frames: list[bytes] = []

    def handle_up(self, link: Link, welcome: Welcome) -> None:
        self.words.append("up")

    def handle_down(self, link: Link) -> None:
        self.words.append("down")

    def handle_silent(self, link: Link) -> None:
        self.words.append("silent")

    def handle_heard(self, link: Link) -> None:
        self.words.append("heard")

    def handle_rejected(self, link: Link, reason: str) -> None:
        self.words.append(f"rejected: {reason}")

    def handle_frames(self, link: Link, frames: list[memoryview]) -> None:
        self.frames += [bytes(frame) for frame in frames]


class Linked:
    """A link that is up, its node, and its owner."""

    def __init__(self, endpoint: str) -> None:
        self.node = Node(endpoint)
        self.sockets = transport()
        self.owner = Owner()
        self.link = Link(self.sockets, endpoint, HELLO, self.owner, "n")

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.link.handle_tick()

    def tick_until_silent(self) -> None:
        """Let the node say nothing for as long as it takes; it welcomes no router meanwhile."""
        self.node.welcomes = False
        self.tick(SILENT_TICKS + 1)
        assert self.owner.words == ["up", "silent"]


@contextlib.asynccontextmanager
async def linked() -> AsyncGenerator[Linked]:
    made = Linked(free_endpoint())
    try:
        await eventually(lambda: made.link.up)
        yield made
    finally:
        made.link.close()
        made.sockets.close()
        made.node.close()


async def test_socket_that_cannot_be_inspected_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    for path, line in (("nothing", []), ("file/socket", ["unix socket cannot be used: TCP is"])):
        caplog.clear()
        made = Linked(free_endpoint())
        made.node.ipc = f"ipc://{tmp_path}/{path}"
        try:
            await eventually(lambda made=made: made.link.up)  # type: ignore[misc]
        finally:
            made.link.close()
            made.sockets.close()
            made.node.close()
        assert [record.message for record in caplog.records] == line


async def test_nothing_is_asked_while_the_node_says_something() -> None:
    async with linked() as made:
        for number in range(5):
            made.node.say(made.node.peers[0], PONG)
            await eventually(lambda number=number: len(made.owner.frames) == number + 1)  # type: ignore[misc]
            made.tick()
        made.link.send(REQUEST)
        await eventually(lambda: made.node.frames == [REQUEST])
        made.tick()
        await eventually(lambda: made.node.frames == [REQUEST, PING])
        assert made.owner.words == ["up"]


async def test_busy_node_resumes_on_its_old_connection() -> None:
    async with linked() as made:
        made.link.send(REQUEST)
        made.tick_until_silent()
        assert made.link.up, "what is on its way is still waited for"
        await eventually(lambda: len(made.node.peers) == 2)  # tried beside, and not answered
        made.node.say(made.node.peers[0], PONG)
        await eventually(lambda: made.owner.words == ["up", "silent", "heard"])
        made.node.welcomes = True
        made.node.say(made.node.peers[0], b"the answer")
        await eventually(lambda: made.owner.frames == [PONG, b"the answer"])
        assert made.node.frames.count(REQUEST) == 1
        made.tick()
        assert made.owner.words == ["up", "silent", "heard"]


async def test_node_answering_both_connections_keeps_the_old() -> None:
    async with linked() as made:
        made.tick_until_silent()
        await eventually(lambda: len(made.node.peers) == 2)
        made.node.say(made.node.peers[1], encode(Welcome("n", "u", b"", b"", "", 1)))
        await asyncio.sleep(0.05)
        made.node.say(made.node.peers[0], PONG)
        await eventually(lambda: "heard" in made.owner.words)
        await asyncio.sleep(0.3)
        assert made.owner.words == ["up", "silent", "heard"]


async def test_dead_connection_is_replaced_without_report_of_down() -> None:
    async with linked() as made:
        made.node.frames.clear()
        made.tick_until_silent()
        made.node.welcomes = True
        await eventually(lambda: made.owner.words == ["up", "silent", "down", "up"])
        assert len(made.node.peers) == 2
        made.link.send(REQUEST)
        await eventually(lambda: REQUEST in made.node.frames)


async def test_silent_node_rejecting_hello_keeps_old_connection() -> None:
    async with linked() as made:
        made.tick_until_silent()
        await eventually(lambda: len(made.node.peers) == 2)
        made.node.say(made.node.peers[1], encode(Fault(0, FaultCode.OVERLOADED, "full")))
        await asyncio.sleep(0.1)
        assert made.link.up
        made.node.say(made.node.peers[0], PONG)
        await eventually(lambda: made.owner.words == ["up", "silent", "heard"])


async def test_unanswered_hello_is_repeated_on_fresh_connection() -> None:
    endpoint = free_endpoint()
    node, sockets, owner = Node(endpoint), transport(), Owner()
    node.welcomes = False
    link = Link(sockets, endpoint, HELLO, owner, "n")
    try:
        await eventually(lambda: len(node.peers) == 1)
        for _ in range(5):
            link.handle_tick()
        await eventually(lambda: len(node.peers) == 2)
        node.welcomes = True
        for _ in range(5):
            link.handle_tick()
        await eventually(lambda: owner.words == ["up"])
    finally:
        link.close()
        sockets.close()
        node.close()


@pytest.mark.real
async def test_peer_that_hangs_up_is_retried_with_pauses() -> None:
    accepted = 0

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    sockets, owner = transport(), Owner()
    link = Link(sockets, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", HELLO, owner)
    try:
        await asyncio.sleep(2.0)
        # At 20 ms each there would be a hundred; the shortest pauses that may be drawn make 25 attempts.
        assert 3 <= accepted <= most_attempts(2.0)
        before = accepted
        await eventually(lambda: accepted > before)
    finally:
        link.close()
        sockets.close()
        server.close()
    assert owner.words == []


async def test_absent_peer_is_retried_with_pauses_until_found() -> None:
    endpoint = free_endpoint()
    sockets, owner = WatchedTransport(), Owner()
    link = Link(sockets, endpoint, HELLO, owner, "n")
    try:
        await asyncio.sleep(1.5)
        assert 3 <= sockets.attempts <= most_attempts(1.5)
        node = Node(endpoint)
        try:
            await eventually(lambda: owner.words == ["up"])
        finally:
            node.close()
    finally:
        link.close()
        sockets.close()


def most_attempts(seconds: float) -> int:
    """Return how often a link may have tried after so long, a quarter of a second late on a busy machine."""
    backoff, attempts, passed_s = Backoff(lambda: 0.0), 1, 0.0
    while (passed_s := passed_s + backoff.next_pause_s()) <= seconds + 0.25:
        attempts += 1
    return attempts


class WatchedTransport:
    """Connections, counted; none can be made while descriptors are said to be used up."""

    def __init__(self) -> None:
        self._sockets = transport()
        self.attempts = 0
        self.descriptors = True
        self.close = self._sockets.close

    def connect(
        self,
        endpoint: str,
        hello: bytes,
        handle_frames: Callable[[Connection, list[memoryview]], None],
        handle_broken: Callable[[Connection], None],
    ) -> Connection:
        self.attempts += 1
        if not self.descriptors:
            raise ClusterUnavailable("cannot connect: no descriptors")
        return self._sockets.connect(endpoint, hello, handle_frames, handle_broken)


@pytest.mark.parametrize("when", ["at first", "again"])
async def test_link_without_descriptor_recovers_once_available(when: str) -> None:
    endpoint = free_endpoint()
    sockets, owner = WatchedTransport(), Owner()
    sockets.descriptors = when == "again"
    node = Node(endpoint)
    link = Link(sockets, endpoint, HELLO, owner, "n")
    try:
        if when == "again":
            await eventually(lambda: owner.words == ["up"])
            sockets.descriptors = False
            node.close()
        await eventually(lambda: owner.words.count("rejected: cannot connect: no descriptors") > 2)
        sockets.descriptors = True
        if when == "again":
            node = Node(endpoint)
        await eventually(lambda: owner.words[-1] == "up")
    finally:
        link.close()
        sockets.close()
        node.close()


def test_hello_of_the_test_node_is_valid() -> None:
    assert isinstance(decode_request(HELLO), Hello)
