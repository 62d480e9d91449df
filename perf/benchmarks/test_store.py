"""Reading and writing one shard in LMDB, warm."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from dawnchorus.fragment_stores.engine import FORMAT, ShardIdentity
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.perf.harness.workload import SyntheticAgents
from dawnchorus.wire.protocol.messages import Put, Write

Timed = Callable[..., Any]
"""The `benchmark` fixture: calls a function many times and returns its result; its own class has no types."""

READ_AGENTS = 640
"""A shard's part of a storm of 10,000 over 16."""


@pytest.fixture
def store(tmp_path: Path, workload: SyntheticAgents, agents: list[bytes]) -> Iterator[LMDBStore]:
    """A shard with 6,250 agents, its part of 100,000."""
    store = LMDBStore(tmp_path, ShardIdentity(FORMAT, "0" * 32, "state", 0, 16, 1), create=True)
    store.begin_generation(1)
    store.commit([write_of(workload, agents, number) for number in range(6250)], 1_750_000_000_000, 1)
    yield store
    store.close()


def write_of(workload: SyntheticAgents, agents: list[bytes], number: int) -> Write:
    """Return a save of all fragments of an agent."""
    operations = [Put(kind, 0, 0, value) for kind, value in workload.encoded(number).items()]
    return Write(agents[number], number.to_bytes(16, "big"), 0, list(operations))


def test_read_640_images(benchmark: Timed, store: LMDBStore, agents: list[bytes]) -> None:
    asked = agents[:6250:9][:READ_AGENTS]

    def read() -> int:
        batch = store.read(asked)
        assert not isinstance(batch, Future)
        frame = store.join(b"", [batch])
        batch.close()
        return len(frame)

    assert benchmark(read) > READ_AGENTS * 5 * 512


def test_read_one_image(benchmark: Timed, store: LMDBStore, agents: list[bytes]) -> None:
    def read() -> int:
        batch = store.read(agents[:1])
        assert not isinstance(batch, Future)
        frame = store.join(b"", [batch])
        batch.close()
        return len(frame)

    assert benchmark(read) > 5 * 512


def test_commit_100_saves(benchmark: Timed, store: LMDBStore, workload: SyntheticAgents, agents: list[bytes]) -> None:
    """One group commit, synced: mostly the disk's time."""
    writes = [write_of(workload, agents, number) for number in range(100)]
    results: list[object] = benchmark(store.commit, writes, 1_750_000_000_001, 1)
    assert all(isinstance(result, int) for result in results)
