"""The writer: gathered commits are one transaction, each write answered for itself, and only after the commit."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from dawnchorus.fragment_stores.engine import FORMAT, Shard, ShardIdentity
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.nodes.group_commit import QUEUE_BYTES_MAX, CommitJob, Writer
from dawnchorus.nodes.maintenance import Housekeeper
from dawnchorus.nodes.node_clock import Clock
from dawnchorus.nodes.node_counters import NodeCounters
from dawnchorus.nodes.shard_table import OwnedShard
from dawnchorus.wire.errors import StoreCorrupt, StoreError, StoreFull
from dawnchorus.wire.protocol.image import decode_image
from dawnchorus.wire.protocol.messages import (
    Commit,
    CommitReply,
    CommitReplySection,
    CommitSection,
    DeleteAgent,
    DeleteKind,
    Operation,
    Put,
    Rejection,
    SectionStatus,
    Write,
    encode,
)
from dawnchorus.wire.transport.loop_calls import LoopCalls
from tests.fragment_stores.conformance import read
from tests.support.raw_nodes import PATIENCE_S, until
from tests.support.write_ids import new_write_id

OK = SectionStatus.OK
FIRST = 1 << 40


class GatedStore:
    """An LMDB store whose commits wait for a gate, are counted, and can be made to fail."""

    def __init__(self, directory: Path, shard: int) -> None:
        self.inner = LMDBStore(
            directory / str(shard), ShardIdentity(FORMAT, "ab" * 16, "live", shard, 2, 1), create=True
        )
        self.inner.begin_generation(1)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.groups: list[list[bytes]] = []
        self.error: BaseException | None = None

    @property
    def version(self) -> int:
        return int(self.inner.version)

    def commit(self, writes: Sequence[Write], now_ms: int, epoch: int) -> list[int | Rejection]:
        self.groups.append([write.agent for write in writes])
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self.inner.commit(writes, now_ms, epoch)

    def value(self, agent: bytes) -> bytes | None:
        [image] = read(self.inner, [agent])
        return decode_image(image)["session"].value if len(image) else None


class Bench:
    """A writer with two shards, and every job that it has delivered."""

    def __init__(
        self, directory: Path, queue_bytes_max: int = QUEUE_BYTES_MAX, group_bytes_max: int = 16 << 20
    ) -> None:
        self.stores = [GatedStore(directory, shard) for shard in (0, 1)]
        kinds = frozenset({"session", "context"})
        self.shards = {
            ("live", shard): OwnedShard("live", shard, 1, kinds, cast("Shard", store))
            for shard, store in enumerate(self.stores)
        }
        self.shards["live", 7] = OwnedShard("live", 7, 1, kinds, None, "it is lost")
        self.delivered: list[list[CommitJob]] = []
        self.threads: set[int] = set()
        clock = Clock([])
        housekeeper = Housekeeper([], clock, NodeCounters())
        self.writer = Writer(
            LoopCalls(asyncio.get_running_loop()),
            self.shards,
            clock,
            self._deliver,
            housekeeper,
            queue_bytes_max=queue_bytes_max,
            group_bytes_max=group_bytes_max,
        )

    def _deliver(self, jobs: list[CommitJob]) -> None:
        self.threads.add(threading.get_ident())
        self.delivered.append(jobs)

    @property
    def answers(self) -> list[CommitReply]:
        return [job.answer() for jobs in self.delivered for job in jobs]

    async def answered(self, count: int) -> list[CommitReply]:
        await until(lambda: len(self.answers) >= count)
        return self.answers


@asynccontextmanager
async def bench_in(directory: Path, **limits: int) -> AsyncGenerator[Bench]:
    bench = Bench(directory, **limits)
    bench.writer.start()
    try:
        yield bench
    finally:
        for store in bench.stores:
            store.gate.set()
        bench.writer.stop(PATIENCE_S)
        for store in bench.stores:
            store.inner.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncGenerator[Bench]:
    async with bench_in(tmp_path) as made:
        yield made


def put(agent: bytes, value: bytes = b"v", kind: str = "session") -> Write:
    return Write(agent, new_write_id(), 0, [Put(kind, 0, 0, value)])


def job(
    *sections: tuple[int, list[Write]],
    request: int = 1,
    deadline_s: float = 1e9,
    epoch: int = 1,
    frame_bytes: int | None = None,
) -> CommitJob:
    commit = Commit(request, 1, 0, None, [CommitSection("live", shard, epoch, writes) for shard, writes in sections])
    size = len(encode(commit)) if frame_bytes is None else frame_bytes
    return CommitJob(b"peer", commit, time.monotonic() + deadline_s, size)


async def test_commit_is_answered_only_after_it_is_stored(bench: Bench) -> None:
    bench.stores[0].gate.clear()
    assert bench.writer.submit(job((0, [put(b"a"), put(b"b")]), request=5))
    assert bench.stores[0].entered.wait(PATIENCE_S)
    await asyncio.sleep(0.01)
    assert not bench.delivered, "answered before it is durable"
    bench.stores[0].gate.set()
    [answer] = await bench.answered(1)
    assert answer == CommitReply(5, [CommitReplySection(0, OK, FIRST + 2, [FIRST + 1, FIRST + 2])])
    assert bench.stores[0].value(b"a") == b"v"
    assert bench.threads == {threading.get_ident()}, "answers come in the loop's thread"


async def test_gathered_commits_are_one_transaction_per_shard(bench: Bench) -> None:
    bench.stores[0].gate.clear()
    bench.writer.submit(job((0, [put(b"first")]), request=1))
    assert bench.stores[0].entered.wait(PATIENCE_S)
    for number in range(2, 12):
        bench.writer.submit(job((0, [put(b"a%d" % number)]), (1, [put(b"b%d" % number)]), request=number))
    bench.stores[0].gate.set()
    answers = await bench.answered(11)
    agents = list(range(2, 12))
    assert bench.stores[0].groups == [[b"first"], [b"a%d" % number for number in agents]]
    assert bench.stores[1].groups == [[b"b%d" % number for number in agents]]
    assert [answer.request for answer in answers] == list(range(1, 12)), "in order of arrival"
    for place, answer in enumerate(answers[1:], 1):
        assert answer.sections == [
            CommitReplySection(0, OK, FIRST + 11, [FIRST + 1 + place]),
            CommitReplySection(1, OK, FIRST + 10, [FIRST + place]),
        ]


async def test_a_group_is_bounded_in_bytes(tmp_path: Path) -> None:
    async with bench_in(tmp_path, group_bytes_max=100_000) as bench:
        bench.stores[0].gate.clear()
        bench.writer.submit(job((0, [put(b"first")])))
        assert bench.stores[0].entered.wait(PATIENCE_S)
        for number in range(5):
            bench.writer.submit(job((0, [put(b"%d" % number, bytes(60_000))])))
        bench.stores[0].gate.set()
        await bench.answered(6)
        assert bench.stores[0].groups == [[b"first"], [b"0", b"1"], [b"2", b"3"], [b"4"]]


async def test_grouped_writes_to_one_agent_apply_in_order(bench: Bench) -> None:
    bench.stores[0].gate.clear()
    for number in range(20):
        bench.writer.submit(job((0, [put(b"a", b"%d" % number)])))
    bench.stores[0].gate.set()
    await bench.answered(20)
    assert bench.stores[0].value(b"a") == b"19"


async def test_sections_are_answered_in_request_order(bench: Bench) -> None:
    sections = [(1, [put(b"a")]), (9, [put(b"b")]), (0, [put(b"c")]), (7, [put(b"d")]), (1, [put(b"e")])]
    bench.writer.submit(job(*sections))
    [answer] = await bench.answered(1)
    assert [section.index for section in answer.sections] == [0, 1, 2, 3, 4]
    assert [section.status for section in answer.sections] == [OK, SectionStatus.MOVED, OK, SectionStatus.CORRUPT, OK]
    assert answer.sections[3].detail == "it is lost"
    assert answer.sections[0].results == [FIRST + 1]
    assert answer.sections[4].results == [FIRST + 2]


async def test_write_under_another_epoch_is_rejected(bench: Bench) -> None:
    bench.writer.submit(job((0, [put(b"a")]), epoch=2))
    [answer] = await bench.answered(1)
    assert answer.sections == [CommitReplySection(0, SectionStatus.MOVED, 0, [])]
    assert bench.stores[0].groups == []


async def test_late_commit_is_answered_too_late_not_applied(bench: Bench) -> None:
    bench.stores[0].gate.clear()
    bench.writer.submit(job((0, [put(b"first")]), request=1))
    assert bench.stores[0].entered.wait(PATIENCE_S)
    bench.writer.submit(job((0, [put(b"late")]), (1, [put(b"late")]), request=2, deadline_s=-0.001))
    bench.writer.submit(job((0, [put(b"in time")]), request=3))
    bench.stores[0].gate.set()
    answers = await bench.answered(3)
    late = SectionStatus.TOO_LATE
    assert answers[1] == CommitReply(2, [CommitReplySection(0, late, 0, []), CommitReplySection(1, late, 0, [])])
    assert [section.status for section in answers[2].sections] == [OK]
    assert (bench.stores[0].value(b"late"), bench.stores[0].value(b"in time")) == (None, b"v")
    assert bench.stores[1].groups == []


@pytest.mark.parametrize(
    "operations",
    [
        [Put("history", 0, 0, b"v")],
        [Put("session", 0, 0, b"v"), Put("history", 0, 0, b"v")],
        [DeleteKind("history")],
        [Put("session", 0, 0, b"v"), DeleteKind("x" * 1_000_000)],
    ],
)
async def test_write_of_foreign_kind_is_rejected_alone(bench: Bench, operations: list[Operation]) -> None:
    bench.writer.submit(job((0, [put(b"a"), Write(b"b", new_write_id(), 0, operations), put(b"c")])))
    [answer] = await bench.answered(1)
    first, rejected, last = answer.sections[0].results
    assert (first, last) == (FIRST + 1, FIRST + 2)
    assert isinstance(rejected, Rejection)
    assert rejected.reason.startswith("store 'live' keeps no kind '")
    assert [bench.stores[0].value(agent) for agent in (b"a", b"b", b"c")] == [b"v", None, b"v"]


async def test_write_expecting_foreign_kind_is_rejected_alone(bench: Bench) -> None:
    expecting = Write(b"b", new_write_id(), 0, [Put("session", 0, 0, b"v")], {"history": 0})
    bench.writer.submit(job((0, [put(b"a"), expecting])))
    [answer] = await bench.answered(1)
    first, rejected = answer.sections[0].results
    assert first == FIRST + 1
    assert isinstance(rejected, Rejection)
    assert rejected.reason == "store 'live' keeps no kind 'history', of which a version is expected"


async def test_store_rejections_are_reported_at_their_writes(bench: Bench) -> None:
    writes = [put(b""), put(b"a"), Write(b"x", new_write_id(), 0, [Put("history", 0, 0, b"")]), put(b"\xff"), put(b"b")]
    bench.writer.submit(job((0, writes)))
    bench.writer.submit(job((0, [Write(b"nobody", new_write_id(), 0, [DeleteAgent()])])))
    answers = await bench.answered(2)
    shown = [result if isinstance(result, int) else "refused" for result in answers[0].sections[0].results]
    assert shown == ["refused", FIRST + 1, "refused", "refused", FIRST + 2]
    assert answers[1].sections[0].results == [0]


async def test_a_section_without_writes_is_answered(bench: Bench) -> None:
    bench.writer.submit(job((0, [])))
    bench.writer.submit(job())
    answers = await bench.answered(2)
    assert answers[0].sections == [CommitReplySection(0, OK, FIRST, [])]
    assert answers[1].sections == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreFull("no space"), SectionStatus.DISK_FULL),
        (StoreCorrupt("bad page"), SectionStatus.CORRUPT),
        (StoreError("odd"), SectionStatus.INTERNAL),
    ],
)
async def test_a_shard_that_fails_fails_its_sections_alone(
    bench: Bench, error: StoreError, status: SectionStatus
) -> None:
    bench.stores[0].error = error
    bench.writer.submit(job((0, [put(b"a")]), (1, [put(b"b")])))
    [answer] = await bench.answered(1)
    assert answer.sections == [
        CommitReplySection(0, status, FIRST, [], str(error)),
        CommitReplySection(1, OK, FIRST + 1, [FIRST + 1]),
    ]
    bench.stores[0].error = None
    bench.writer.submit(job((0, [put(b"a")])))
    assert (await bench.answered(2))[1].sections[0].results == [FIRST + 1]


async def test_internal_error_is_answered_logged_and_survived(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.stores[0].error = RuntimeError("a bug")
    bench.writer.submit(job((1, [put(b"b")]), (0, [put(b"a")]), request=1))
    [answer] = await bench.answered(1)
    assert [section.status for section in answer.sections] == [SectionStatus.INTERNAL] * 2
    assert [record.message for record in caplog.records] == ["commit fails"]
    bench.stores[0].error = None
    bench.writer.submit(job((0, [put(b"a")]), request=2))
    assert (await bench.answered(2))[1].sections[0].status == OK


async def test_full_queue_rejects_commits_until_room_returns(tmp_path: Path) -> None:
    async with bench_in(tmp_path, queue_bytes_max=100_000) as bench:
        bench.stores[0].gate.clear()
        large = [put(b"a", bytes(45_000))]
        assert bench.writer.submit(job((0, large)))
        assert bench.writer.submit(job((0, large)))
        assert not bench.writer.submit(job((0, large)))
        assert not bench.writer.submit(job((1, large)))
        assert bench.writer.submit(job((0, [put(b"small")])))
        bench.stores[0].gate.set()
        await bench.answered(3)
        assert bench.writer.submit(job((0, large)))
        assert bench.writer.submit(job((0, large)))
        await bench.answered(5)
        assert [agent for group in bench.stores[0].groups for agent in group] == [b"a", b"a", b"small", b"a", b"a"]


def test_many_small_writes_weigh_their_memory() -> None:
    small = Write(b"a", b"", 0, [DeleteAgent()])
    assert job((0, [small] * 1_000), frame_bytes=10_000).size == 10_000 + 1_000 * 200
    assert job((0, [Write(b"a", b"", 0, [DeleteAgent()] * 1_000)]), frame_bytes=1_000).size == 1_000 + 1_001 * 100


async def stop_in_thread(stop: Callable[[float], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, stop, PATIENCE_S)


async def test_stop_commits_and_answers_queued_jobs(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        bench.stores[0].gate.clear()
        for number in range(50):
            bench.writer.submit(job((0, [put(b"%d" % number)]), request=number))
        asyncio.get_running_loop().call_later(0.02, bench.stores[0].gate.set)
        await stop_in_thread(bench.writer.stop)
        await bench.answered(50)
        assert [answer.request for answer in bench.answers] == list(range(50))
        assert bench.stores[0].value(b"49") == b"v"
        await stop_in_thread(bench.writer.stop)


async def test_shards_of_one_group_sync_in_parallel(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        for store in bench.stores:
            store.gate.clear()
        bench.writer.submit(job((0, [put(b"a")]), (1, [put(b"b")])))
        for store in bench.stores:
            assert store.entered.wait(PATIENCE_S)
        for store in bench.stores:
            store.gate.set()
        [answer] = await bench.answered(1)
        assert [section.status for section in answer.sections] == [OK, OK]


async def test_stopping_gives_up_on_a_disk_that_hangs(tmp_path: Path) -> None:
    async with bench_in(tmp_path) as bench:
        bench.stores[0].gate.clear()
        bench.writer.submit(job((0, [put(b"a")])))
        assert bench.stores[0].entered.wait(PATIENCE_S)
        bench.writer.stop(0.01)
        assert not bench.delivered
