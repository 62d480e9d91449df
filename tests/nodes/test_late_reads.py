"""Pending reads: parked, resumed, answered in frames of their own; no other request waits for them."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import pytest

from dawnchorus import connect
from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.fragment_stores.image_batch import ImageBatch, ImageList, PendingBatch, join_lists
from dawnchorus.nodes.launcher import Launcher
from dawnchorus.nodes.read_path import Read
from dawnchorus.nodes.shard_table import OwnedShard
from dawnchorus.wire.errors import StoreError, TopologyError
from dawnchorus.wire.protocol.image import Fragment, encode_image
from dawnchorus.wire.protocol.limits import FRAME_BYTES_TARGET
from dawnchorus.wire.protocol.messages import ABSENT, Fetch, FetchReply, FetchSection, SectionStatus, decode_reply
from tests.support.clusters import write_topology

ROOT = Path(__file__).parents[2]
ENGINE = "tests.support.late_engine:LateEngine"


class HandDriven:
    """A shard whose reads are done when a test says so."""

    def __init__(self) -> None:
        self.reads: list[tuple[list[bytes], PendingBatch]] = []

    def read(self, agents: list[bytes], *_: object) -> PendingBatch:
        future: PendingBatch = Future()
        self.reads.append((agents, future))
        return future

    join = staticmethod(join_lists)

    def answer(self, number: int, size: int = 10) -> None:
        """Give each agent of a read an image of this size."""
        agents, future = self.reads[number]
        future.set_result(ImageList([image(size) if agent != b"nobody" else b"" for agent in agents], 5))


class AtOnce(HandDriven):
    """A shard whose reads are done at once, of another engine."""

    def read(self, agents: list[bytes], *_: object) -> ImageBatch:  # type: ignore[override]
        return ImageList([image(10) for _ in agents], 7)


def image(size: int) -> bytes:
    return encode_image(3, {"session": Fragment(3, 0, 0, 1, 0, bytes(size))})


def owned(shard: int, store: HandDriven, engine: str = "late") -> tuple[tuple[str, int], OwnedShard]:
    return ("live", shard), OwnedShard("live", shard, 1, frozenset({"session"}), cast("Shard", store), engine=engine)


def fetch(*sections: tuple[int, list[bytes]]) -> Fetch:
    return Fetch(7, 1, 0, None, [FetchSection("live", shard, 1, agents) for shard, agents in sections])


def frame(read: Read) -> tuple[list[tuple[int, int, SectionStatus, list[int]]], bool] | None:
    """Return the sections of the next frame, None while all is pending."""
    made = read.next_frame(1)
    if made is None:
        return None
    reply = decode_reply(made[0])
    assert isinstance(reply, FetchReply)
    assert reply.last == made[1]
    sections = [(one.index, one.offset, SectionStatus(one.status), list(one.sizes)) for one in reply.sections]
    return sections, made[1]


def test_ready_images_are_sent_before_pending_ones() -> None:
    late = HandDriven()
    read = Read(fetch((0, [b"a"]), (1, [b"b"]), (0, [b"c"])), dict([owned(0, late), owned(1, AtOnce(), "quick")]))
    size = len(image(10))
    assert frame(read) == ([(1, 0, SectionStatus.OK, [size])], False)
    assert frame(read) is None
    assert frame(read) is None
    late.answer(1)
    assert frame(read) == ([(2, 0, SectionStatus.OK, [size])], False)
    assert frame(read) is None
    late.answer(0)
    assert frame(read) == ([(0, 0, SectionStatus.OK, [size])], True)
    assert len(late.reads) == 2, "each is read once"


def test_pending_reads_of_one_engine_share_a_frame() -> None:
    late = HandDriven()
    read = Read(fetch((0, [b"a", b"nobody"]), (1, [b"b"])), dict([owned(0, late), owned(1, late)]))
    assert frame(read) is None
    late.answer(1)
    late.answer(0)
    size = len(image(10))
    assert frame(read) == ([(0, 0, SectionStatus.OK, [size, ABSENT]), (1, 0, SectionStatus.OK, [size])], True)


def test_large_pending_batch_fills_frames_without_rereading() -> None:
    late = HandDriven()
    agents = [b"%d" % number for number in range(30)]
    read = Read(fetch((0, agents)), dict([owned(0, late)]))
    assert frame(read) is None
    late.answer(0, FRAME_BYTES_TARGET // 8)
    sizes: list[int] = []
    last = False
    while not last:
        made = frame(read)
        assert made is not None
        [(index, offset, _, some)], last = made
        assert (index, offset) == (0, len(sizes))
        sizes += some
    assert len(sizes) == 30
    assert len(late.reads) == 1
    assert read.agents_read == 30


def test_repeatable_read_is_repeated() -> None:
    late = HandDriven()
    read = Read(fetch((0, [b"a"])), dict([owned(0, late)]))
    assert frame(read) is None
    late.reads[0][1].set_result(None)
    assert frame(read) is None, "it is pending again"
    late.answer(1)
    assert frame(read) == ([(0, 0, SectionStatus.OK, [len(image(10))])], True)


def test_failed_pending_read_fails_its_section_alone() -> None:
    late = HandDriven()
    read = Read(fetch((0, [b"a"]), (1, [b"b"])), dict([owned(0, late), owned(1, late)]))
    assert frame(read) is None
    late.reads[0][1].set_exception(StoreError("the network is down"))
    late.answer(1)
    assert frame(read) == ([(0, 0, SectionStatus.INTERNAL, []), (1, 0, SectionStatus.OK, [len(image(10))])], True)


def test_shard_lost_while_pending_is_not_answered_for() -> None:
    late = HandDriven()
    shards = dict([owned(0, late)])
    read = Read(fetch((0, [b"a"])), shards)
    assert frame(read) is None
    late.answer(0)
    shards["live", 0].epoch = 2
    assert frame(read) == ([(0, 0, SectionStatus.MOVED, [])], True)


def test_first_finished_read_notifies() -> None:
    late = HandDriven()
    read = Read(fetch((0, [b"a"]), (1, [b"b"])), dict([owned(0, late), owned(1, late)]))
    notified: list[object] = []
    assert frame(read) is None
    read.when_ready(notified.append)
    assert not notified
    late.answer(1)
    assert len(notified) == 1


def test_pending_reads_of_one_fetch_are_bounded() -> None:
    late = HandDriven()
    read = Read(fetch(*[(0, [b"a"])] * 100), dict([owned(0, late)]))
    done = 0
    last = False
    while not last:
        made = frame(read)
        if made is None:
            assert len(late.reads) - done <= 32
            late.answer(done)
            done += 1
        else:
            last = made[1]
    assert done == len(late.reads) == 100


# --- through real nodes ---


def write_late_topology(directory: Path, options: str, engine: str = ENGINE) -> Path:
    """Write the topology of one node, whose store "live" is kept by the late engine."""
    path = write_topology(directory, shards=2, nodes={"all-1": ["identity", "live", "archive"]})
    text = path.read_text()
    named = f'[stores.live]\nengine = "{engine}"\n'
    assert "[stores.live]\n" in text
    path.write_text(text.replace("[stores.live]\n", named) + f'\n[stores.live."{engine}"]\n{options}\n')
    return path


@pytest.fixture
def _found_by_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))


@pytest.mark.real
@pytest.mark.usefixtures("_found_by_nodes")
async def test_late_engine_does_not_delay_other_stores(tmp_path: Path) -> None:
    path = write_late_topology(tmp_path, "late_ms = 200")
    async with Launcher(path), connect(path) as cluster:
        ids = [f"agent-{number}" for number in range(40)]
        saves = {one: {"profile": {"n": one}, "session": {"n": one}, "history": [one]} for one in ids}
        saved = await cluster.save_many(saves)
        assert not [result for result in saved.values() if isinstance(result, BaseException)]
        storms = [asyncio.create_task(cluster.wake_many(ids, deadline_s=30)) for _ in range(5)]
        took: list[float] = []
        while not all(storm.done() for storm in storms):
            began = time.monotonic()
            state = await cluster.wake(ids[len(took) % 40], kinds=["profile", "history"], deadline_s=30)
            took.append(time.monotonic() - began)
            assert state["history"] == [state.agent_id]
        for states in [await storm for storm in storms]:
            assert all(state.complete and state["session"] == {"n": state.agent_id} for state in states)
        # A wake that waited for the late store would take 200 ms at least.
        assert len(took) > 5
        assert statistics.median(took) < 0.1
        began = time.monotonic()
        assert (await cluster.wake(ids[0], kinds=["session"], deadline_s=30))["session"] == {"n": ids[0]}
        assert time.monotonic() - began > 0.2
        assert {agent async for agent in cluster.agents(store="live")} == set(ids)


@pytest.mark.real
@pytest.mark.usefixtures("_found_by_nodes")
async def test_a_failing_engine_degrades_its_kinds_alone(tmp_path: Path) -> None:
    path = write_late_topology(tmp_path, "late_ms = 5\nfail_every = 3")
    async with Launcher(path), connect(path) as cluster:
        ids = [f"agent-{number}" for number in range(30)]
        await cluster.save_many({one: {"profile": {}, "session": {"n": one}} for one in ids})
        degraded = 0
        for one in ids:
            state = await cluster.wake(one, deadline_s=30)
            assert state["profile"] == {}
            if state.degraded:
                assert set(state.degraded) == {"session", "context"}
                degraded += 1
            else:
                assert state["session"] == {"n": one}
        assert 0 < degraded < 30


@pytest.mark.real
async def test_engine_missing_at_nodes_fails_the_start(tmp_path: Path) -> None:
    path = write_late_topology(tmp_path, "", engine="nowhere.engine:Engine")
    with pytest.raises(TopologyError, match=r"topology.*\.toml: stores\.live\.engine: 'nowhere\.engine:Engine' cannot"):
        async with Launcher(path):
            pass
