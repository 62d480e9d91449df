"""Reads of pages that are not in memory: noticed, and left to another thread; and reads during a reopening."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from dawnchorus.fragment_stores.lmdb.cold_reads import ColdReads
from dawnchorus.fragment_stores.lmdb.lookup import find
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.perf.harness.cold_files import drop, resident_share
from dawnchorus.wire.errors import StoreError
from tests.fragment_stores.conformance import IDENTITY, PATIENCE_S, commit, images_of, put, read, read_batch

pytestmark = pytest.mark.skipif(find is None, reason="without the compiled part nothing is known of pages")

AGENTS = [b"agent-%04d" % number for number in range(600)]


def value(agent: bytes) -> bytes:
    return agent * 300


@pytest.fixture
def cold(tmp_path: Path) -> LMDBStore:
    """A shard of which nothing is in memory, but what opening it looked at."""
    store = LMDBStore(tmp_path, IDENTITY, create=True)
    store.begin_generation(1)
    commit(store, [put(agent, value(agent)) for agent in AGENTS], 1)
    store.close()
    file = tmp_path / "data.mdb"
    drop([file])
    if resident_share([file]) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    return LMDBStore(tmp_path, IDENTITY, create=False, cold_reads=ColdReads(threads=1))


def test_cold_read_of_many_is_pending_then_warm(cold: LMDBStore) -> None:
    pending = cold.read(AGENTS)
    assert isinstance(pending, Future)
    assert pending.result(PATIENCE_S) is None, "it may be read now"
    batch = cold.read(AGENTS)
    assert not isinstance(batch, Future)
    images = images_of(cold, batch)
    batch.close()
    assert [image[-len(value(agent)) :] for image, agent in zip(images, AGENTS, strict=True)] == list(
        map(value, AGENTS)
    )
    cold.close()


@pytest.mark.parametrize("kinds", [None, frozenset(["session"])])
def test_cold_read_of_one_is_pending_under_suspicion(cold: LMDBStore, kinds: frozenset[str] | None) -> None:
    pending = cold.read(AGENTS[:100])
    assert isinstance(pending, Future)
    pending.result(PATIENCE_S)
    batch = cold.read(AGENTS[:1], kinds)
    assert not isinstance(batch, Future), "its pages were read with those of the others"
    batch.close()
    assert isinstance(cold.read(AGENTS[-1:], kinds), Future)
    assert read(cold, AGENTS[-1:])[0][-20:] == value(AGENTS[-1])[-20:]
    cold.close()


def test_other_threads_run_while_pages_are_read(cold: LMDBStore) -> None:
    pending = cold.read(AGENTS)
    assert isinstance(pending, Future)
    threads = {thread.name for thread in threading.enumerate()}
    assert "cold-reads-0" in threads
    pending.result(PATIENCE_S)
    cold.close()


def test_slow_read_without_page_wait_raises_no_suspicion() -> None:
    cold_reads = ColdReads(threads=1)
    cold_reads.note_slow(100.0)  # this thread may have waited for a page at some time before
    cold_reads.note_slow(200.0)
    assert cold_reads.suspicious_until < 200.0


def test_smaller_reads_are_run_first() -> None:
    cold_reads = ColdReads(threads=1)
    gate = threading.Event()
    order: list[int] = []
    first = cold_reads.run(1, gate.wait)
    futures = [cold_reads.run(size, partial(order.append, size)) for size in (4_096, 640, 1, 700)]
    gate.set()
    for future in [first, *futures]:
        future.result(PATIENCE_S)
    assert order == [1, 640, 700, 4_096]


def test_error_in_a_thread_reaches_the_caller() -> None:
    def fail() -> None:
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        ColdReads(threads=1).run(1, fail).result(PATIENCE_S)


def test_read_during_reopening_is_pending(tmp_path: Path) -> None:
    store = LMDBStore(tmp_path, IDENTITY, create=True)
    store.begin_generation(1)
    commit(store, [put("a", b"1")], 1)
    with store._gate.alone(1.0) as alone:  # pyright: ignore[reportPrivateUsage]
        assert alone
        pending = store.read([b"a"])
        assert isinstance(pending, Future)
        assert not pending.done()
        with pytest.raises(StoreError, match="being opened again"):
            store.statistics()
    assert pending.result(PATIENCE_S) is None
    batch = read_batch(store, [b"a"])
    assert images_of(store, batch)[0].endswith(b"1")
    batch.close()
    assert store.statistics().agents == 1
    store.close()
