"""The node over real sockets: its replies, their order, and its treatment of peers that misbehave."""

import asyncio
import os
import random
import resource
import tempfile
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.nodes.node import FragmentNode
from dawnchorus.wire.cluster.placement import decode_placement
from dawnchorus.wire.cluster.topology import decode_topology, encode_topology
from dawnchorus.wire.descriptors import lowest_free
from dawnchorus.wire.errors import DataDirectoryError
from dawnchorus.wire.protocol.image import decode_image
from dawnchorus.wire.protocol.limits import FRAME_BYTES_MAX, REQUEST_AGENTS_MAX
from dawnchorus.wire.protocol.messages import (
    ABSENT,
    PROTOCOL,
    Commit,
    CommitReply,
    CommitSection,
    DeleteAgent,
    DeleteKind,
    Fault,
    FaultCode,
    Fetch,
    FetchReply,
    FetchSection,
    Hello,
    ImageSection,
    Message,
    Put,
    Rejection,
    Reply,
    Scan,
    ScanReply,
    SectionStatus,
    Status,
    StatusReply,
    Welcome,
    Write,
    decode_reply,
    encode,
)
from dawnchorus.wire.protocol.shard_hash import shard_of
from dawnchorus.wire.protocol.versions import generation_of
from dawnchorus.wire.transport.channel import Sent
from dawnchorus.wire.transport.fair_queue import PEER_QUEUE_LENGTH_MAX
from tests.support.raw_nodes import (
    BUDGET_US,
    NODE,
    SHARDS,
    RawClient,
    Served,
    commit_of,
    fetch_of,
    make_topology,
    served,
    until,
)
from tests.support.write_ids import new_write_id

HELLO = encode(Hello(PROTOCOL, "", b"test", ""))
SMALLEST = Write(b"a", b"", 0, [])


def value(image: bytes | int, kind: str = "session") -> bytes | int:
    return decode_image(image)[kind].value if isinstance(image, bytes) else image


async def barrier(client: RawClient) -> dict[str, int]:
    """Return the node's counters once it has processed everything that this client sent before."""
    return (await client.status()).counters


# --- Hello ---


async def test_welcome_has_everything_that_a_router_needs(serving: Served) -> None:
    async with RawClient(serving.endpoint) as client:
        welcome = await client.hello()
        placement = decode_placement(welcome.placement)
        assert (welcome.node, welcome.cluster_uuid) == (NODE, placement.cluster_uuid)
        assert set(placement.shards) == {"identity", "live", "archive"}
        assert decode_topology(welcome.topology).digest == serving.topology.digest
        assert welcome.topology == encode_topology(serving.topology)
        assert (welcome.ipc, welcome.frame_bytes_max) == ("", FRAME_BYTES_MAX)
        for cluster in ("test", welcome.cluster_uuid):
            assert await client.hello(cluster) == welcome


@pytest.mark.parametrize(
    "request_message",
    [
        fetch_of([b"a"], request=5),
        commit_of({b"a": b"v"}, request=5),
        Scan(5, BUDGET_US, 0, None, "live", 0, 1, b"", 10),
        Status(5, BUDGET_US, 0, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_requests_without_hello_are_rejected_and_not_served(serving: Served, request_message: Message) -> None:
    async with RawClient(serving.endpoint) as client:
        fault = await client.ask(request_message, Fault)
        assert (fault.request, fault.code) == (5, FaultCode.NO_HELLO)
        await client.hello()
        counters = await barrier(client)
        assert (counters["faults"], counters["malformed_frames"], counters["writes"], counters["fetches"]) == (
            1,
            0,
            0,
            0,
        )


async def test_malformed_frame_without_hello_is_answered_by_number(serving: Served) -> None:
    async with RawClient(serving.endpoint) as client:
        client.send(b"\xc1garbage")
        client.send(b"")
        client.send(msgspec.msgpack.encode(["no tag", 77]))
        fault = await client.receive()
        assert isinstance(fault, Fault)
        assert (fault.request, fault.code) == (77, FaultCode.NO_HELLO)
        await client.hello()
        assert (await barrier(client))["malformed_frames"] == 3


@pytest.mark.parametrize("cluster", ["another", "ab" * 16, "TEST"])
async def test_router_of_another_cluster_is_rejected(serving: Served, cluster: str) -> None:
    async with RawClient(serving.endpoint) as client:
        fault = await client.ask(Hello(PROTOCOL, cluster, b"", ""), Fault)
        assert (fault.request, fault.code) == (0, FaultCode.WRONG_CLUSTER)
        assert "'test'" in fault.detail
        assert repr(cluster) in fault.detail
        fault = await client.ask(fetch_of([b"a"]), Fault)
        assert fault.code == FaultCode.NO_HELLO, "it was not let in"


@pytest.mark.parametrize("protocol", [0, PROTOCOL - 1, PROTOCOL + 1, -1])
async def test_router_of_another_protocol_is_rejected(serving: Served, protocol: int) -> None:
    async with RawClient(serving.endpoint) as client:
        fault = await client.ask(Hello(protocol, "test", b"", ""), Fault)
        assert (fault.request, fault.code) == (0, FaultCode.UNSUPPORTED)
        assert fault.detail == f"this node speaks protocol {PROTOCOL}, not {protocol}"
        assert (await client.ask(fetch_of([b"a"]), Fault)).code == FaultCode.NO_HELLO


async def test_longer_hello_of_newer_router_is_understood(serving: Served) -> None:
    async with RawClient(serving.endpoint) as client:
        client.send(msgspec.msgpack.encode([1, PROTOCOL, "test", b"c", "digest", "new", {"newer": 1}]))
        assert isinstance(await client.receive(), Welcome)


async def test_first_request_on_new_connection_ends_the_earlier(serving: Served) -> None:
    endpoint = serving.endpoint
    async with RawClient(endpoint) as earlier, RawClient(endpoint) as other, RawClient(endpoint) as later:
        await earlier.ask(Hello(PROTOCOL, "", b"12345678", ""), Welcome)
        await other.ask(Hello(PROTOCOL, "", b"87654321", ""), Welcome)
        await later.ask(Hello(PROTOCOL, "", b"12345678", ""), Welcome)
        await earlier.ask(Status(4, BUDGET_US, 0, None), StatusReply)  # a Hello beside it ends nothing
        for client in (later, other):
            await client.ask(Status(5, BUDGET_US, 0, None), StatusReply)
        fault = await earlier.ask(Status(6, BUDGET_US, 0, None), Fault)
        assert (fault.request, fault.code) == (6, FaultCode.NO_HELLO)


# --- reading and writing ---


async def test_saved_fragments_are_fetched_from_several_stores(client: RawClient) -> None:
    agents = {b"agent-%d" % number: b"%d" % number for number in range(50)}
    await client.commit(agents)
    await client.commit({b"agent-7": b"p"}, store="identity", kind="profile")
    found = await client.fetch(fetch_of([*agents, b"nobody"]))
    assert {agent: value(image) for agent, image in found.items()} == {**agents, b"nobody": ABSENT}
    found = await client.fetch(fetch_of([b"agent-7", b"agent-8"], store="identity"))
    assert value(found[b"agent-7"], "profile") == b"p"
    assert found[b"agent-8"] == ABSENT


async def test_sections_of_several_stores_travel_in_one_message(client: RawClient) -> None:
    await client.commit({b"a": b"1"})
    await client.commit({b"a": b"2"}, store="archive", kind="history")
    shard = shard_of(b"a", SHARDS)
    sections = [FetchSection(store, shard, 1, [b"a"]) for store in ("live", "archive", "identity")]
    reply = await client.ask(Fetch(9, BUDGET_US, 0, None, sections), FetchReply)
    assert reply.last
    assert [section.sizes[0] > 0 for section in reply.sections] == [True, True, False]


async def test_large_fetch_gets_frames_of_complete_images(client: RawClient) -> None:
    agents = {b"agent-%d" % number: b"%d" % number + bytes(50_000) for number in range(100)}
    for start in range(0, 100, 20):
        await client.commit(dict(list(agents.items())[start : start + 20]))
    found = await client.fetch(fetch_of(agents))
    assert {agent: value(image) for agent, image in found.items()} == agents


async def test_replies_carry_the_clock_of_the_node(client: RawClient) -> None:
    reply = await client.ask(fetch_of([b"a"]), FetchReply)
    assert 1_700_000_000_000 < reply.now_ms < 10_000_000_000_000


async def test_the_largest_agent_travels(client: RawClient) -> None:
    await client.commit({b"a": bytes(1 << 20)})
    await client.commit({b"a": b"c" * ((1 << 20) - 200)}, kind="context")
    found = await client.fetch(fetch_of([b"a", b"nobody"]))
    assert value(found[b"a"]) == bytes(1 << 20)
    assert value(found[b"a"], "context") == b"c" * ((1 << 20) - 200)
    larger = await client.ask(commit_of({b"a": bytes((1 << 20) + 1)}), CommitReply)
    assert isinstance(larger.sections[0].results[0], Rejection)


async def test_hundreds_of_concurrent_saves_are_all_answered(serving: Served, client: RawClient) -> None:
    # One group of the writer: more answers at once than the peer's queue in the socket has room for.
    for number in range(500):
        client.send(encode(commit_of({b"agent-%d" % number: b"v"}, request=number)))
    answers = [await client.receive() for _ in range(500)]
    assert [answer.request for answer in answers if isinstance(answer, CommitReply)] == list(range(500))
    assert serving.node.counters.dropped_replies == 0


async def test_writes_are_acknowledged_with_versions_that_grow(client: RawClient) -> None:
    seen: list[int] = []
    for number in range(20):
        committed = await client.commit({b"a": b"%d" % number})
        [section] = committed.sections
        assert section.results == [section.version]
        seen.append(section.version)
    assert seen == sorted(set(seen))
    assert (await client.ask(fetch_of([b"a"]), FetchReply)).sections[0].version >= seen[-1]


async def test_bad_writes_fail_alone(client: RawClient) -> None:
    shard = shard_of(b"a", SHARDS)
    writes = [
        Write(b"a", new_write_id(), 0, [Put("session", 0, 0, b"v")]),
        Write(b"a", new_write_id(), 0, [Put("no-such-kind", 0, 0, b"v")]),
        Write(b"a", new_write_id(), 0, [DeleteKind("history")]),
        Write(b"", new_write_id(), 0, [Put("session", 0, 0, b"v")]),
        Write(b"nobody", new_write_id(), 0, [DeleteAgent()]),
        Write(b"a", new_write_id(), 0, [Put("context", 0, 0, b"v")]),
    ]
    sections = [CommitSection("live", shard, 1, writes), CommitSection("live", 99, 1, writes[:1])]
    committed = await client.ask(Commit(3, BUDGET_US, 0, None, sections), CommitReply)
    first, second = committed.sections
    assert (first.status, second.status) == (SectionStatus.OK, SectionStatus.MOVED)
    shown = ["refused" if isinstance(result, Rejection) else bool(result) for result in first.results]
    assert shown == [True, "refused", "refused", "refused", False, True]
    counters = await barrier(client)
    assert (counters["commits"], counters["writes"], counters["rejected_writes"]) == (1, 3, 3)


async def test_a_scan_pages_through_a_shard(client: RawClient) -> None:
    agents = sorted(b"agent-%d" % number for number in range(300))
    await client.commit(dict.fromkeys(agents, b"v"))
    found: list[bytes] = []
    for shard in range(SHARDS):
        mine = [agent for agent in agents if shard_of(agent, SHARDS) == shard]
        for page in (1_000, 37, 1):
            listed: list[bytes] = []
            scanned = ScanReply(0, 0, [], False)
            while not scanned.last:
                position = listed[-1] if listed else b""
                scanned = await client.ask(Scan(4, BUDGET_US, 0, None, "live", shard, 1, position, page), ScanReply)
                assert (scanned.request, scanned.status) == (4, SectionStatus.OK)
                assert len(scanned.agents) <= page
                listed += scanned.agents
            assert listed == mine
        found += mine
    assert sorted(found) == agents


async def test_scan_of_nothing_or_too_much_is_bounded(client: RawClient) -> None:
    await client.commit(dict.fromkeys([b"agent-%05d" % number for number in range(10_000)], b""))
    one = await client.ask(Scan(1, BUDGET_US, 0, None, "live", 0, 1, b"", 0), ScanReply)
    assert (len(one.agents), one.last) == (1, False)
    many = await client.ask(Scan(1, BUDGET_US, 0, None, "live", 0, 1, b"", 1 << 60), ScanReply)
    assert (len(many.agents), many.last) == (4_096, False)


async def test_scans_of_foreign_shard_or_bad_position_rejected(client: RawClient) -> None:
    moved = await client.ask(Scan(1, BUDGET_US, 0, None, "live", 0, 2, b"", 10), ScanReply)
    assert (moved.status, moved.agents, moved.last) == (SectionStatus.MOVED, [], True)
    fault = await client.ask(Scan(6, BUDGET_US, 0, None, "live", 0, 1, b"x" * 600, 10), Fault)
    assert (fault.request, fault.code) == (6, FaultCode.BAD_REQUEST)


async def test_status_shows_process_shards_and_work(client: RawClient) -> None:
    await client.commit({b"a": b"v", b"b": b"v"})
    await client.fetch(fetch_of([b"a", b"nobody"]))
    status = await client.status()
    assert (status.node, status.pid) == (NODE, os.getpid())
    assert status.rss_bytes > 1 << 20
    assert status.uptime_ms >= 0
    assert [(shard.store, shard.shard) for shard in status.shards] == [
        (store, shard) for store in ("identity", "live", "archive") for shard in range(SHARDS)
    ]
    assert {shard.state for shard in status.shards} == {"serving"}
    assert sum(shard.agents for shard in status.shards) == 2
    assert all(shard.disk_bytes > 0 and shard.epoch == 1 for shard in status.shards)
    counters = status.counters
    assert (counters["hellos"], counters["fetches"], counters["images"]) == (1, 1, 2)
    assert (counters["commits"], counters["writes"], counters["malformed_frames"]) == (1, 2, 0)
    assert counters["image_bytes"] > 0


async def test_a_node_serves_its_ipc_endpoint_too(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="dc-") as directory:
        ipc = f"ipc://{directory}/x.ipc"
        async with served(make_topology(tmp_path), ipc=ipc) as serving, RawClient(ipc) as client:
            assert (await client.hello()).ipc == ipc
            assert (await client.status()).ipc == ipc
            await client.commit({b"a": b"v"})
            async with RawClient(serving.endpoint) as other:
                assert (await other.hello()).ipc == ipc
                assert value((await other.fetch(fetch_of([b"a"])))[b"a"]) == b"v"
        assert os.listdir(directory) == [], "a stopped node takes its socket with it"


class MemoryTransport:
    """A transport that reaches one node without a socket."""

    def __init__(self) -> None:
        self.deliver: Callable[[list[list[bytes]]], None] = lambda _: None
        self.sent: list[Reply] = []
        self.closed = False

    def bind(self) -> None:
        pass

    def open_channel(
        self,
        loop: asyncio.AbstractEventLoop,
        handle_messages: Callable[[list[list[bytes]]], None],
        handle_ended: Callable[[], None],
    ) -> "MemoryTransport":
        self.deliver = handle_messages
        return self

    def shut(self, shut: bool) -> None:
        pass

    def send_to(self, identity: bytes, frame: bytes) -> Sent:
        self.sent.append(decode_reply(frame))
        return Sent.OK

    def poll(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


async def test_node_serves_in_memory_by_a_given_clock(tmp_path: Path) -> None:
    transport, now = MemoryTransport(), [1_000.0]

    def ask(*messages: Message) -> None:
        transport.deliver([[b"peer", encode(message)] for message in messages])

    async with served(make_topology(tmp_path), transport=transport, monotonic=lambda: now[0]) as serving:
        ask(Hello(PROTOCOL, "", b"test", ""), commit_of({b"a": b"v"}))
        await until(lambda: len(transport.sent) == 2)
        ask(fetch_of([b"a"], sent_us=1))
        now[0] += 61.0
        ask(fetch_of([b"a"], sent_us=2))  # it was under way for a minute longer than the first
        assert [type(reply) for reply in transport.sent] == [Welcome, CommitReply, FetchReply]
        assert serving.node.counters.late == 1
    assert transport.closed


# --- deadlines ---


@pytest.mark.parametrize(
    "request_message",
    [fetch_of([b"a"], budget_us=0), Scan(1, 0, 0, None, "live", 0, 1, b"", 10), Status(1, 0, 0, None)],
    ids=lambda value: type(value).__name__,
)
async def test_requests_with_spent_budget_are_dropped_and_counted(client: RawClient, request_message: Message) -> None:
    for _ in range(5):
        client.send(encode(request_message))
    counters = await barrier(client)
    assert (counters["late"], counters["fetches"], counters["scans"], counters["faults"]) == (5, 0, 0, 0)
    assert client.waiting == 0


async def test_saves_with_spent_budget_are_answered_too_late(client: RawClient) -> None:
    commit = msgspec.structs.replace(commit_of({b"a": b"v"}), budget_us=0)
    committed = await client.ask(commit, CommitReply)
    assert [section.status for section in committed.sections] == [SectionStatus.TOO_LATE]
    counters = await barrier(client)
    assert (counters["late"], counters["writes"]) == (1, 0)
    assert (await client.fetch(fetch_of([b"a"])))[b"a"] == ABSENT


async def test_spent_budget_drops_the_rest_of_a_fetch(serving: Served) -> None:
    async with RawClient(serving.endpoint) as filler, RawClient(serving.endpoint) as client:
        await filler.hello()
        await client.hello()
        agents = [b"agent-%d" % number for number in range(30)]
        for agent in agents:
            await filler.commit({agent: bytes(900_000)})
        # Thirty frames that this client does not take, as the loop does not run; then the budget is spent.
        client.send(encode(fetch_of(agents, budget_us=1_000)))
        await until(lambda: serving.node.counters.late == 1)
        counters = serving.node.counters
        assert (counters.fetches, counters.dropped_replies) == (0, 0)


# --- malformed and invalid requests ---


async def test_messages_of_several_frames_are_dropped_and_counted(client: RawClient) -> None:
    status = encode(Status(1, BUDGET_US, 0, None))
    client.send(status, status)
    client.send(b"", status)
    client.send(*[b"x"] * 100)
    counters = await barrier(client)
    assert (counters["malformed_frames"], client.waiting) == (3, 0)


async def test_bad_request_with_readable_number_is_answered(client: RawClient) -> None:
    client.send(msgspec.msgpack.encode([3, 41, BUDGET_US, "no sections"]))
    fault = await client.receive()
    assert isinstance(fault, Fault)
    assert (fault.request, fault.code) == (41, FaultCode.BAD_REQUEST)
    assert "array" in fault.detail
    client.send(encode(fetch_of([b"a"]))[:-3])
    client.send(b"\x93\x03\x2a\xa1\xff")
    assert (await barrier(client))["malformed_frames"] == 3


async def test_large_bad_request_is_not_searched_for_number(client: RawClient) -> None:
    client.send(msgspec.msgpack.encode([3, 41, "x" * 100_000]))
    assert (await barrier(client))["malformed_frames"] == 1
    assert client.waiting == 0


@pytest.mark.parametrize(
    "request_message",
    [
        Fetch(8, BUDGET_US, 0, None, [FetchSection("live", 0, 1, [b""])]),
        Fetch(8, BUDGET_US, 0, None, [FetchSection("live", 0, 1, [b"a"], [])]),
        Fetch(8, BUDGET_US, 0, None, [FetchSection("live", 0, 1, [b"a"] * (REQUEST_AGENTS_MAX + 1))]),
        Fetch(8, BUDGET_US, 0, None, [FetchSection("live", 0, 1, [])] * 5_000),
        Commit(8, BUDGET_US, 0, None, [CommitSection("live", 0, 1, [])] * 5_000),
        Commit(8, BUDGET_US, 0, None, [CommitSection("live", 0, 1, [SMALLEST] * (REQUEST_AGENTS_MAX + 1))]),
    ],
    ids=["empty id", "known missing", "too many agents", "too many sections", "sections of writes", "too many writes"],
)
async def test_requests_outside_the_limits_are_rejected(client: RawClient, request_message: Message) -> None:
    client.send(encode(request_message))
    fault = await client.receive()
    assert isinstance(fault, Fault), fault
    assert fault.code == FaultCode.BAD_REQUEST
    assert fault.request == 8
    counters = await barrier(client)
    assert (counters["internal_errors"], counters["fetches"], counters["commits"]) == (0, 0, 0)


async def test_thousands_of_sections_of_one_shard_are_served(client: RawClient) -> None:
    await client.commit({b"a": b"v"})
    shard = shard_of(b"a", SHARDS)
    fetch = Fetch(1, BUDGET_US, 0, None, [FetchSection("live", shard, 1, [b"a"])] * 2_000)
    client.send(encode(fetch))
    sections: list[ImageSection] = []
    last = False
    while not last:
        reply = await client.receive()
        assert isinstance(reply, FetchReply)
        sections += reply.sections
        last = reply.last
    assert {section.status for section in sections} == {SectionStatus.OK}
    assert [section.index for section in sections] == list(range(2_000))


async def test_internal_error_is_answered_logged_and_survived(
    serving: Served, client: RawClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(LMDBStore, "agents_after", fail)
        fault = await client.ask(Scan(12, BUDGET_US, 0, None, "live", 0, 1, b"", 1), Fault)
    assert (fault.request, fault.code, fault.detail) == (12, FaultCode.INTERNAL, "see the node's log")
    assert [record.message for record in caplog.records] == ["request fails"]
    assert serving.node.counters.internal_errors == 1
    assert (await client.ask(Scan(12, BUDGET_US, 0, None, "live", 0, 1, b"", 1), ScanReply)).agents == []


def nonsense(source: random.Random) -> bytes:
    """Return random bytes, or a request that was cut short, had bits flipped, or is about agents of no other test."""
    requests = [
        HELLO,
        encode(fetch_of([b"x%d" % source.randrange(9) for _ in range(3)], request=source.randrange(99))),
        encode(commit_of({b"x": b"v"}, request=7)),
        encode(Scan(7, BUDGET_US, 0, None, "live", 0, 1, b"x", 10)),
        encode(Status(7, BUDGET_US, 0, None)),
    ]
    frame = bytearray(source.choice(requests))
    match source.randrange(4):
        case 0:
            return source.randbytes(source.randrange(60))
        case 1:
            return bytes(frame[: source.randrange(len(frame))])
        case _:
            for _ in range(source.randrange(1, 4)):
                frame[source.randrange(len(frame))] ^= 1 << source.randrange(8)
            return bytes(frame)


# --- peers ---


async def test_vanished_peers_work_is_dropped_but_no_others(serving: Served, client: RawClient) -> None:
    agents = {b"agent-%d" % number: bytes(50_000) for number in range(60)}
    for start in range(0, 60, 20):
        await client.commit(dict(list(agents.items())[start : start + 20]))
    for _ in range(10):
        leaver = RawClient(serving.endpoint)
        await leaver.hello()
        for number in range(20):
            leaver.send(encode(fetch_of(agents, request=number)))
        await leaver.receive()
        leaver.close()
    assert len(await client.fetch(fetch_of(agents))) == 60
    # Its work is done up to the frame that cannot be delivered, and then dropped.
    await until(lambda: serving.node.counters.dropped_replies >= 10)
    assert (await barrier(client))["internal_errors"] == 0


async def test_storm_of_one_client_does_not_delay_another(serving: Served, client: RawClient) -> None:
    agents = {b"agent-%d" % number: bytes(20_000) for number in range(100)}
    await client.commit(agents)
    storm = fetch_of(agents)
    async with RawClient(serving.endpoint) as single:
        await single.hello()
        served_before: list[int] = []
        for _round in range(5):
            already = serving.node.counters.fetches
            for _ in range(200):
                client.send(encode(storm))
            replies = [await client.receive()]  # the storm has begun
            await single.fetch(fetch_of([b"agent-5"]))
            served_before.append(serving.node.counters.fetches - already)
            # Taken to the end: every request of the storm is answered too.
            while sum(isinstance(reply, FetchReply) and reply.last for reply in replies) < 200:
                replies.append(await client.receive())
            assert all(isinstance(reply, FetchReply) for reply in replies)
        assert max(served_before) < 190, "the single fetch waited for the storm's end"


async def test_requests_beyond_peer_queue_are_answered_as_overloaded(client: RawClient) -> None:
    requests = 2 * PEER_QUEUE_LENGTH_MAX
    for number in range(requests):
        client.send(encode(Status(number, BUDGET_US, 0, None)))
    replies = [await client.receive() for _ in range(requests)]
    faults = [reply for reply in replies if isinstance(reply, Fault)]
    served_ones = [reply for reply in replies if isinstance(reply, StatusReply)]
    answered = [*(fault.request for fault in faults), *(reply.request for reply in served_ones)]
    assert sorted(answered) == list(range(requests))
    assert {fault.code for fault in faults} == {FaultCode.OVERLOADED}
    assert len(served_ones) >= PEER_QUEUE_LENGTH_MAX
    counters = await barrier(client)
    assert (counters["shed"], counters["faults"]) == (len(faults), len(faults))


async def test_saves_beyond_writer_queue_are_answered_as_overloaded(tmp_path: Path) -> None:
    async with (
        served(make_topology(tmp_path), queue_bytes_max=1_000) as serving,
        RawClient(serving.endpoint) as client,
    ):
        await client.hello()
        fault = await client.ask(commit_of({b"a": bytes(1_000)}, request=4), Fault)
        assert (fault.request, fault.code) == (4, FaultCode.OVERLOADED)
        counters = await barrier(client)
        assert (counters["shed"], counters["faults"], counters["writes"]) == (1, 1, 0)


async def test_peer_beyond_limit_is_rejected_until_another_leaves(tmp_path: Path) -> None:
    async with served(make_topology(tmp_path), peers_max=3) as serving, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(serving.endpoint)) for _ in range(3)]
        for client in clients:
            await client.hello()
        async with RawClient(serving.endpoint) as late:
            fault = await late.ask(Hello(PROTOCOL, "", b"test", ""), Fault)
            assert (fault.code, fault.retry_after_us > 0) == (FaultCode.OVERLOADED, True)
            assert "takes no more clients" in fault.detail
            await clients[0].hello()  # a known peer may say Hello again
            for client in clients:
                await client.fetch(fetch_of([b"a"]))
            clients[0].close()

            def tick() -> bool:
                serving.node.server.peers.handle_tick()
                return len(serving.node.server.peers) == 2

            await until(tick)
            await late.hello()
            await late.fetch(fetch_of([b"a"]))
        assert (await clients[1].status()).counters["turned_away"] == 1


async def test_blocked_peer_waits_alone_and_gets_everything_later(serving: Served) -> None:
    agents = {b"agent-%d" % number: bytes(200_000) for number in range(20)}
    async with RawClient(serving.endpoint) as other:
        await other.hello()
        for agent in agents:
            await other.commit({agent: agents[agent]})
        with lazy_dealer(serving.endpoint) as lazy:
            lazy.send(HELLO)
            for number in range(50):
                lazy.send(encode(fetch_of(agents, request=number)))
            lazy.send(encode(commit_of({b"lazy": b"v"}, request=50)))
            # It is blocked, and the other is served as if it were not there.
            await until(lambda: serving.node.server.peers.blocked)
            for _ in range(5):
                assert len(await other.fetch(fetch_of(agents))) == 20
            replies: list[Reply] = []

            def take() -> bool:
                while lazy.poll(0):
                    replies.append(decode_reply(lazy.recv()))
                return bool(replies) and isinstance(replies[-1], CommitReply)

            await until(take)
            assert isinstance(replies.pop(0), Welcome)
            assert [reply.request for reply in replies if isinstance(reply, FetchReply) and reply.last] == list(
                range(50)
            )
            assert serving.node.counters.dropped_replies == 0
            assert not serving.node.server.peers.blocked


@contextmanager
def lazy_dealer(endpoint: str) -> Generator[zmq.Socket[bytes]]:
    """Open a socket that takes no more than it must from its peer until its frames are received."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as lazy:
        lazy.setsockopt(zmq.RCVHWM, 1)
        lazy.setsockopt(zmq.RCVBUF, 10_000)
        lazy.setsockopt(zmq.LINGER, 0)
        lazy.connect(endpoint)
        yield lazy


# --- a lost shard, starting and stopping ---


async def test_lost_shard_is_named_and_others_are_served(tmp_path: Path) -> None:
    topology = make_topology(tmp_path)
    agents = {b"agent-%d" % number: b"v" for number in range(20)}
    async with served(topology) as serving, RawClient(serving.endpoint) as client:
        await client.hello()
        await client.commit(agents)
    data = Path(topology.data_dir) / NODE / "live" / "0001" / "data.mdb"
    data.unlink()
    async with served(topology) as serving, RawClient(serving.endpoint) as client:
        await client.hello()
        fetch = fetch_of(agents)
        reply = await client.ask(fetch, FetchReply)
        assert [section.status for section in reply.sections] == [SectionStatus.OK, SectionStatus.CORRUPT]
        assert all(reply.sections[0].sizes)
        committed = await client.ask(commit_of(agents), CommitReply)
        assert [section.status for section in committed.sections] == [SectionStatus.OK, SectionStatus.CORRUPT]
        assert "missing" in committed.sections[1].detail
        scanned = await client.ask(Scan(1, BUDGET_US, 0, None, "live", 1, 1, b"", 10), ScanReply)
        assert (scanned.status, scanned.last) == (SectionStatus.CORRUPT, True)
        states = {(shard.store, shard.shard): shard.state for shard in (await client.status()).shards}
        assert "missing" in states.pop(("live", 1))
        assert set(states.values()) == {"serving"}
    assert not data.exists(), "nothing is made in its place"


async def test_stop_commits_and_answers_queued_saves(tmp_path: Path) -> None:
    topology = make_topology(tmp_path)
    async with AsyncExitStack() as stack:
        async with served(topology) as serving:
            client = await stack.enter_async_context(RawClient(serving.endpoint))
            await client.hello()
            for number in range(300):
                client.send(encode(commit_of({b"agent-%d" % number: b"v"}, request=number)))
            await until(lambda: serving.node.counters.commits > 0)
        answers = [await client.receive() for _ in range(serving.node.counters.commits)]
    assert all(isinstance(answer, CommitReply) for answer in answers)
    assert serving.node.counters.dropped_replies == 0
    agents = [b"agent-%d" % answer.request for answer in answers if isinstance(answer, CommitReply)]
    async with served(topology) as again, RawClient(again.endpoint) as later:
        await later.hello()
        found = await later.fetch(fetch_of(agents))
        assert ABSENT not in found.values(), "an acknowledged save was lost"


async def test_versions_after_restart_exceed_all_earlier_ones(tmp_path: Path) -> None:
    topology = make_topology(tmp_path)
    generations: list[int] = []
    for _ in range(3):
        async with served(topology) as serving, RawClient(serving.endpoint) as client:
            welcome = await client.hello()
            committed = await client.commit({b"a": b"v"})
            generation = decode_placement(welcome.placement).generation
            assert generation_of(committed.sections[0].version) == generation
            generations.append(generation)
    assert generations == [1, 2, 3]


async def test_endpoint_in_use_is_rejected_without_disturbing_holder(serving: Served, client: RawClient) -> None:
    node = FragmentNode(serving.topology, decode_placement((await client.hello()).placement), NODE, serving.shards)
    with pytest.raises(DataDirectoryError, match=r"cannot bind tcp://.* in topology\.toml"):
        node.bind()
    await client.commit({b"a": b"v"})


async def test_malformed_frames_of_many_disturb_no_other_peer(serving: Served, client: RawClient) -> None:
    await client.commit({b"checked-%d" % number: b"%d" % number for number in range(10)})
    source = random.Random(3)
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(RawClient(serving.endpoint)) for _ in range(4)]
        for welcomed in others[:2]:
            await welcomed.hello()
        for number in range(400):
            for other in others:
                other.send(nonsense(source))
            if number % 20 == 0:
                found = await client.fetch(fetch_of([b"checked-%d" % (number % 10)]))
                assert value(found[b"checked-%d" % (number % 10)]) == b"%d" % (number % 10)
            await asyncio.sleep(0)
        await until(lambda: serving.node.counters.malformed_frames > 400)  # frames of others may still be under way
        counters = await barrier(client)
    assert counters["internal_errors"] == 0
    assert counters["malformed_frames"] > 400


async def test_status_carries_every_counter(serving: Served, client: RawClient) -> None:
    reply = await client.ask(Status(77, BUDGET_US, 0, None), StatusReply)
    assert reply.request == 77
    assert reply.counters.keys() == serving.node.counters.as_dict().keys()
    assert reply.counters["hellos"] == 1


async def test_node_without_free_descriptor_answers_status(client: RawClient) -> None:
    await client.hello()
    before = await client.status()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free(), hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_RDONLY)
        status = await client.status()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert status.rss_bytes == before.rss_bytes, "as it was known last"
    assert status.counters["internal_errors"] == 0
