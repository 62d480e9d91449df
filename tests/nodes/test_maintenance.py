"""Work of the writer beside commits: when it sweeps, which shards it leaves alone, and that failures stop nothing."""

from typing import cast

import pytest

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.nodes.maintenance import GRACE_MS, Housekeeper
from dawnchorus.nodes.node_clock import Clock
from dawnchorus.nodes.node_counters import NodeCounters
from dawnchorus.nodes.shard_table import OwnedShard
from dawnchorus.nodes.wall_clock import AGREED_MS, JUMP_MS
from dawnchorus.wire.errors import StoreError, StoreFull

START_MS = 1_000_000_000
AGREED_S = AGREED_MS / 1_000


class Store:
    """A store that records the sweeps and syncs that the housekeeper asks for."""

    def __init__(self) -> None:
        self.clock_ms = 0
        self.sweeps: list[tuple[int, int, int]] = []
        self.syncs = 0
        self.expired = 0
        """Fragments that are still to be removed."""
        self.failure: Exception | None = None
        self.next_expiry_ms = 1

    def sweep(self, before_ms: int, rows_max: int, now_ms: int) -> tuple[int, int]:
        self.sweeps.append((before_ms, rows_max, now_ms))
        if self.failure is not None:
            raise self.failure
        removed = min(self.expired, rows_max)
        self.expired -= removed
        return removed, removed

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        return 0

    def sync(self) -> None:
        self.syncs += 1
        if self.failure is not None:
            raise self.failure


class House:
    """Shards with their housekeeper, and the clocks that a test moves."""

    def __init__(self, *sync_intervals_s: float, started_ago_s: float = AGREED_S) -> None:
        self.wall_ms = START_MS
        self.monotonic_s = 100.0
        self.counters = NodeCounters()
        self.stores = [Store() for _ in sync_intervals_s]
        self.shards = [
            OwnedShard("live", number, 1, frozenset(), cast(Shard, store), sync_interval_s=interval_s)
            for number, (store, interval_s) in enumerate(zip(self.stores, sync_intervals_s, strict=True))
        ]
        clock = Clock(self.shards, wall_ms=lambda: self.wall_ms, monotonic_ms=lambda: int(self.monotonic_s * 1_000))
        self.monotonic_s += started_ago_s
        self.wall_ms += int(started_ago_s * 1_000)
        clock.work()
        self.keeper = Housekeeper(self.shards, clock, self.counters, lambda: self.monotonic_s)

    def work_after(self, seconds: float) -> None:
        """Let time go on, and the housekeeper do what is due."""
        self.monotonic_s += seconds
        self.wall_ms += int(seconds * 1_000)
        self.keeper.work_if_due()


def test_shard_with_nothing_due_is_left_alone() -> None:
    house = House(0.0, 0.0, 0.0)
    house.stores[0].next_expiry_ms = 0
    house.stores[1].next_expiry_ms = house.wall_ms - GRACE_MS + 2_000
    house.work_after(1.0)
    assert [len(store.sweeps) for store in house.stores] == [0, 0, 1]
    house.work_after(1.0)
    assert [len(store.sweeps) for store in house.stores] == [0, 1, 2]


def test_expired_fragments_are_swept_after_their_grace_time() -> None:
    house = House(0.0, 0.0)
    house.work_after(0.5)
    assert house.stores[0].sweeps == []
    assert house.keeper.due_in_s() == 0.5
    house.work_after(0.5)
    for store in house.stores:
        [(before_ms, rows_max, now_ms)] = store.sweeps
        assert (before_ms, now_ms) == (house.wall_ms - GRACE_MS, house.wall_ms)
        assert rows_max > 0
    assert house.keeper.due_in_s() == 1.0


def test_unfinished_sweep_goes_on_at_once() -> None:
    house = House(0.0)
    house.stores[0].expired = 450
    house.work_after(1.0)
    for _ in range(2):
        assert house.keeper.due_in_s() == 0.0
        house.work_after(0.0)
    assert house.keeper.due_in_s() == 1.0
    assert house.stores[0].expired == 0
    assert house.counters.expired == 450
    assert len(house.stores[0].sweeps) == 3


@pytest.mark.parametrize("jump_ms", [JUMP_MS + 1, -JUMP_MS - 1, 86_400_000])
def test_sweeping_pauses_while_wall_clock_is_in_doubt(jump_ms: int) -> None:
    house = House(0.0)
    house.work_after(1.0)
    house.wall_ms += jump_ms
    house.work_after(1.0)
    swept = len(house.stores[0].sweeps)
    house.work_after(AGREED_S - 1.0)
    assert len(house.stores[0].sweeps) == swept == 1
    house.work_after(1.0)
    assert len(house.stores[0].sweeps) == 2
    assert house.stores[0].sweeps[-1][2] >= house.stores[0].sweeps[0][2]


def test_nothing_is_swept_for_minutes_after_start() -> None:
    house = House(0.0, started_ago_s=0.0)
    house.work_after(AGREED_S - 1.0)
    assert house.stores[0].sweeps == []
    house.work_after(1.0)
    assert len(house.stores[0].sweeps) == 1


def test_stores_of_async_durability_are_synced_on_schedule() -> None:
    house = House(0.0, 0.2, 0.7)
    assert house.keeper.due_in_s() == pytest.approx(0.2)
    for _ in range(10):
        house.work_after(0.1)
    assert [store.syncs for store in house.stores] == [0, pytest.approx(4, abs=1), 1]
    house.keeper.finish()
    assert house.stores[0].syncs == 0
    assert house.stores[2].syncs == 2


@pytest.mark.parametrize("failure", [StoreFull("no space"), StoreError("broken"), RuntimeError("a bug")])
def test_failure_stops_neither_other_shards_nor_later_work(failure: Exception) -> None:
    house = House(0.2, 0.2)
    house.stores[0].failure = failure
    house.work_after(1.0)
    house.stores[0].failure = None
    house.work_after(1.0)
    assert len(house.stores[0].sweeps) >= 1
    assert len(house.stores[1].sweeps) >= 1
    assert all(store.syncs for store in house.stores)


def test_closed_shard_is_left_alone() -> None:
    house = House(0.0, 0.2)
    for shard in house.shards:
        shard.fragments = None
    house.work_after(1.0)
    house.keeper.finish()
    assert [(store.sweeps, store.syncs) for store in house.stores] == [([], 0), ([], 0)]
