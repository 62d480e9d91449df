"""A node as a process under floods: malformed frames, and a client that asks for much and never reads."""

import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from dawnchorus.nodes.group_commit import QUEUE_BYTES_MAX
from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.errors import ProtocolError
from dawnchorus.wire.protocol.image import decode_image
from dawnchorus.wire.protocol.messages import (
    PONG,
    PROTOCOL,
    Commit,
    CommitReply,
    CommitSection,
    DeleteAgent,
    Fault,
    Fetch,
    FetchReply,
    FetchSection,
    Hello,
    Message,
    Reply,
    Scan,
    Status,
    StatusReply,
    Welcome,
    Write,
    decode_reply,
    decode_request,
    encode,
)
from dawnchorus.wire.transport.reply_queues import PEER_BYTES_MAX
from tests.support.clusters import anonymous_bytes, write_topology
from tests.support.raw_nodes import (
    ALL_STORES,
    BUDGET_US,
    NODE,
    PATIENCE_S,
    SHARDS,
    NodeProcess,
    commit_of,
    fetch_of,
    images_in,
)

HELLO = encode(Hello(PROTOCOL, "", b"test", ""))
CHECKED = {b"checked-agent-%02d" % number: b"%d" % number * 100 for number in range(20)}


class Flooded:
    """A node's process, and blocking sockets to it."""

    def __init__(self, process: NodeProcess, endpoint: str) -> None:
        self.process, self.endpoint = process, endpoint
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self.client = self.dealer()
        self.ask(Hello(PROTOCOL, "", b"test", ""))

    def dealer(self, *, lazy: bool = False) -> zmq.Socket[bytes]:
        """Open a socket to the node; a lazy one takes no more of the replies than it must."""
        made = self._context.socket(zmq.DEALER)
        self._sockets.append(made)
        made.setsockopt(zmq.LINGER, 0)
        if lazy:
            made.setsockopt(zmq.RCVHWM, 1)
            made.setsockopt(zmq.RCVBUF, 10_000)
            made.setsockopt(zmq.SNDHWM, 4)
        made.connect(self.endpoint)
        return made

    def ask(self, message: Message) -> Reply:
        """Send a request of the client that behaves, and return the next reply."""
        self.client.send(encode(message))
        return self.receive()

    def receive(self) -> Reply:
        while True:
            assert self.client.poll(int(PATIENCE_S * 1_000)), "the node does not answer"
            frame = self.client.recv()
            if frame != PONG:  # unsolicited: this client was silent while it flooded the node
                return decode_reply(frame)

    def commit(self, values: dict[bytes, bytes]) -> None:
        committed = self.ask(commit_of(values))
        assert isinstance(committed, CommitReply)
        assert all(isinstance(result, int) for section in committed.sections for result in section.results)

    def fetch(self, fetch: Fetch) -> dict[bytes, bytes | int]:
        replies = [self.ask(fetch)]
        while isinstance(replies[-1], FetchReply) and not replies[-1].last:
            replies.append(self.receive())
        return images_in(fetch, [reply for reply in replies if isinstance(reply, FetchReply)])

    def check(self, fetch: Fetch) -> None:
        """Fail unless the node serves what was saved before."""
        for agent, image in self.fetch(fetch).items():
            assert isinstance(image, bytes)
            assert decode_image(image)["session"].value == CHECKED[agent]

    def counters(self) -> dict[str, int]:
        status = self.ask(Status(1, BUDGET_US, 0, None))
        assert isinstance(status, StatusReply)
        assert status.pid == self.process.pid, "the node has ended and another serves"
        return status.counters

    def close(self) -> None:
        for made in self._sockets:
            made.close()
        self._context.term()


@pytest.fixture
def flooded(tmp_path: Path, ipc_directory: Path) -> Iterator[Flooded]:
    with flooded_in(tmp_path) as made:
        yield made


@contextmanager
def flooded_in(directory: Path) -> Generator[Flooded]:
    path = write_topology(directory, shards=SHARDS, nodes=ALL_STORES)
    with NodeProcess(path) as process:
        process.serving()
        made = Flooded(process, load_topology(path).nodes[NODE].endpoint)
        try:
            yield made
        finally:
            made.close()
        assert process.end() == 0, process.log
        assert [line["event"] for line in process.log] == [
            "a new cluster was made",
            "stopped",
        ], "a peer could write into the node's log"


def nonsense(source: random.Random) -> Callable[[], bytes]:
    """Return a function that makes random bytes, and requests that were cut short or had bits flipped."""
    requests = [
        HELLO,
        encode(fetch_of([b"x%d" % number for number in range(3)], request=9)),
        encode(commit_of({b"x": b"v"}, request=7)),
        encode(Scan(7, BUDGET_US, 0, None, "live", 0, 1, b"x", 10)),
        encode(Status(7, BUDGET_US, 0, None)),
        encode(Welcome("n", "u", b"p", b"t", "", 1)),
    ]

    def make() -> bytes:
        frame = bytearray(source.choice(requests))
        kind = source.random()
        if kind < 0.25:
            return source.randbytes(source.randrange(60))
        if kind < 0.5:
            return bytes(frame[: source.randrange(len(frame))])
        for _ in range(source.randrange(1, 4)):
            frame[source.randrange(len(frame))] ^= 1 << source.randrange(8)
        return bytes(frame)

    return make


def test_malformed_frames_are_counted_and_disturb_no_client(flooded: Flooded) -> None:
    flooded.commit(CHECKED)
    # Some have said Hello and some have not; some read the answers and some do not.
    offenders = [flooded.dealer() for _ in range(8)]
    for welcomed in offenders[:4]:
        welcomed.send(HELLO)
    make = nonsense(random.Random(1))
    single = [fetch_of([agent]) for agent in CHECKED]
    undecodable = lost = 0
    for number in range(100_000):
        offender, frame = offenders[number % 8], make()
        undecodable += is_undecodable(frame)
        offender.send(frame)
        if number % 8 >= 6:
            lost += is_undecodable(frame)  # perhaps: a peer that takes nothing for seconds is disconnected
        else:
            while offender.poll(0):
                offender.recv()
        if number % 1_000 == 0:
            flooded.check(single[number // 1_000 % len(single)])
    for offender in offenders[:6]:
        work_through(offender)
    counters = flooded.counters()
    assert counters["internal_errors"] == 0
    # Frames that were shed, of peers that sent more than they read, were not decoded.
    assert undecodable > 50_000
    assert undecodable - lost - counters["shed"] <= counters["malformed_frames"] <= undecodable
    assert counters["malformed_frames"] > 10_000
    flooded.check(fetch_of(CHECKED))
    flooded.commit({b"later": b"v"})


def is_undecodable(frame: bytes) -> bool:
    try:
        decode_request(frame)
    except ProtocolError:
        return True
    return False


def work_through(offender: zmq.Socket[bytes]) -> None:
    """Read until the node has processed everything that the socket sent: it answers a Status sent last."""
    last = encode(Status(123_456_789, BUDGET_US, 0, None))
    offender.send(HELLO)
    offender.send(last)
    end = time.monotonic() + PATIENCE_S
    while True:  # unsolicited Pongs must not prolong this for ever
        assert offender.poll(max(0, int((end - time.monotonic()) * 1_000)))
        reply = decode_reply(offender.recv())
        if isinstance(reply, StatusReply) and reply.request == 123_456_789:
            return
        if isinstance(reply, Fault) and reply.request == 123_456_789:  # shed: too many of its frames wait still
            offender.send(last)


def large_and_small(number: int) -> bytes:
    agents = [b"large-%d" % (number % 4), *(b"agent-%d" % agent for agent in range(300))]
    return encode(fetch_of(agents, request=number))


TINY = Write(b"ab", b"", 0, [DeleteAgent()])

FLOODS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "fetches": (large_and_small, 1_000),
    "fetches of nothing": (
        lambda number: encode(
            Fetch(number, BUDGET_US, 0, None, [FetchSection("live", 0, 1, [b"%05d" % each for each in range(50_000)])])
        ),
        200,
    ),
    "largest malformed frames": (lambda _: b"\x93\x03\x01\xdd\x00\x3f\xff\x00" + bytes(0x3FFF00), 100),
    "too large fetches": (
        lambda number: encode(Fetch(number, BUDGET_US, 0, None, [FetchSection("live", 0, 1, [b"ab"] * 65_536)] * 12)),
        50,
    ),
    "commits of tiny writes": (
        lambda number: encode(Commit(number, BUDGET_US, 0, None, [CommitSection("live", 0, 1, [TINY] * 65_536)])),
        150,
    ),
    "small requests": (lambda number: encode(Status(number, BUDGET_US, 0, None)), 20_000),
}


def test_client_that_never_reads_costs_bounded_bytes(flooded: Flooded) -> None:
    flooded.commit(CHECKED)
    for number in range(300):
        flooded.commit({b"agent-%d" % number: bytes(20_000)})
    for number in range(4):
        flooded.commit({b"large-%d" % number: bytes(1 << 20)})
    everything = fetch_of([b"agent-%d" % number for number in range(300)])
    for _ in range(10):
        flooded.fetch(everything)
    before = anonymous_bytes(flooded.process.pid)
    for flood, (make, count) in FLOODS.items():
        offender = flooded.dealer(lazy=True)
        offender.send(HELLO)
        frame, peak = make(1), 0
        for number in range(count):
            # If the node takes no more, that is its answer: a client that never reads sends no more either.
            if not offender.poll(200, zmq.POLLOUT):
                break
            offender.send(frame)
            if number % 10 == 0:
                peak = max(peak, anonymous_bytes(flooded.process.pid))
            if number % 50 == 0:
                flooded.check(fetch_of([b"checked-agent-07"]))
        flooded.check(fetch_of(CHECKED))
        peak = max(peak, anonymous_bytes(flooded.process.pid)) - before
        allowed = PEER_BYTES_MAX + (QUEUE_BYTES_MAX if "commits" in flood else 0)
        assert peak < allowed, f"{flood}: the node grew by {peak >> 20} MiB"
        offender.close()
    assert flooded.counters()["internal_errors"] == 0
