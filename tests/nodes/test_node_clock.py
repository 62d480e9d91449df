"""The clocks of shards: where they begin, when the wall clock is doubted, and what follows once it is believed."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.nodes.clock_record import RECORD_FILE, boot_name, read_record, write_record
from dawnchorus.nodes.node_clock import SWEEP_IN_DOUBT_MS, Clock
from dawnchorus.nodes.shard_table import OwnedShard
from dawnchorus.nodes.wall_clock import AGREED_MS, JUMP_MS, ClockRecord, ShardClock, WallClock, first_clocks
from dawnchorus.wire.errors import StoreFull

DAY_MS = 86_400_000


class StoreOfTime:
    """A store that has only a clock, and records what it was asked to postpone."""

    def __init__(self, clock_ms: int) -> None:
        self.clock_ms = clock_ms
        self.postponed: list[tuple[int, int, int]] = []
        self.full = False

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        if self.full:
            raise StoreFull("no space")
        self.postponed.append((since_ms, by_ms, now_ms))
        return 1


class House:
    """Shards with a clock over two clocks that a test sets; None for a shard that is not open."""

    def __init__(self, *stored_ms: int | None, record: ClockRecord | None = None, wall_ms: int = 1_000_000) -> None:
        self.wall_ms = wall_ms
        self.monotonic_ms = 5_000
        self.records: list[ClockRecord] = []
        self.full = False
        self.stores = [None if ms is None else StoreOfTime(ms) for ms in stored_ms]
        self.shards = [
            OwnedShard("live", number, 1, frozenset(), None if store is None else cast(Shard, store))
            for number, store in enumerate(self.stores)
        ]
        self.clock = Clock(
            self.shards, record, self._write, "this boot", lambda: self.wall_ms, lambda: self.monotonic_ms
        )

    def _write(self, record: ClockRecord) -> None:
        if self.full:
            raise OSError(28, "no space left")
        self.records.append(record)

    def go_on(self, milliseconds: int, *, look_ms: int = 10_000) -> None:
        """Advance both clocks, and let the housekeeper look at them."""
        while milliseconds > 0:
            step = min(look_ms, milliseconds)
            milliseconds -= step
            self.wall_ms += step
            self.monotonic_ms += step
            self.clock.work()

    def times(self) -> list[int]:
        return [shard.now_ms(self.monotonic_ms) for shard in self.shards if shard.fragments is not None]


def test_new_shard_takes_wall_clock_then_follows_monotonic() -> None:
    house = House(0, 0)
    assert house.times() == [1_000_000] * 2
    house.wall_ms += 2 * DAY_MS
    house.monotonic_ms += 700
    assert house.times() == [1_000_700] * 2


def test_empty_node_follows_wall_clock_back() -> None:
    house = House(0, 0, wall_ms=1_000_000 + 2 * DAY_MS)
    house.wall_ms -= 2 * DAY_MS
    house.go_on(1_000)
    assert house.times() == [house.wall_ms] * 2
    assert house.stores[1] is not None
    house.stores[1].clock_ms = house.wall_ms
    house.wall_ms -= DAY_MS
    house.go_on(1_000)
    assert house.times() == [house.wall_ms + DAY_MS] * 2


def test_wall_clock_set_and_corrected_changes_nothing() -> None:
    house = House(1_000_000)
    house.go_on(AGREED_MS)
    for wrong_ms in (2 * DAY_MS, -2 * DAY_MS, JUMP_MS + 1):
        house.wall_ms += wrong_ms
        house.go_on(AGREED_MS - 1_000)
        assert house.shards[0].doubt_ms
        assert not house.clock.may_sweep(house.shards[0], house.monotonic_ms)
        house.wall_ms -= wrong_ms
        house.go_on(AGREED_MS)
        assert house.times() == [house.wall_ms]
    house.go_on(AGREED_MS)
    assert not house.shards[0].doubt_ms
    assert house.clock.may_sweep(house.shards[0], house.monotonic_ms)
    assert house.stores[0] is not None
    assert house.stores[0].postponed == []


def test_slewed_wall_clock_does_not_count_as_set() -> None:
    wall = WallClock(1_000_000, 0)
    for second in range(1, 4_001):
        assert wall.handle_look(1_000_000 + second * 1_005 // 1, second * 1_000) == 0
        assert wall.is_believed == (second * 1_000 >= AGREED_MS)


def test_small_steps_add_up_to_one() -> None:
    wall = WallClock(1_000_000, 0)
    moved = [wall.handle_look(1_000_000 + second * 1_100, second * 1_000) for second in range(1, 100)]
    assert sum(1 for by_ms in moved if by_ms) >= 4
    assert not wall.is_believed


def test_clock_ahead_of_wall_clock_never_goes_back() -> None:
    house = House(1_000_000 + 2 * DAY_MS)
    assert house.times() == [1_000_000 + 2 * DAY_MS]
    house.go_on(2 * AGREED_MS)
    assert house.times() == [house.wall_ms + 2 * DAY_MS]
    assert house.shards[0].doubt_ms == 0


def test_shard_ahead_does_not_advance_others() -> None:
    house = House(999_000, None, 1_000_000 + 2 * DAY_MS, 500_000, 0)
    assert house.times() == [999_000, 1_000_000 + 2 * DAY_MS, 999_000, 999_000]


def test_downtime_is_counted_without_the_wall_clock() -> None:
    record = ClockRecord("this boot", 1_000, {"live/0": ShardClock(700_000), "live/1": ShardClock(700_000, 650_000)})
    house = House(600_000, 690_000, record=record, wall_ms=1_000_000 + 2 * DAY_MS)
    assert house.times() == [704_000] * 2
    assert [shard.doubt_ms for shard in house.shards] == [704_000, 650_000]


def test_time_of_reboot_waits_for_believed_wall_clock() -> None:
    record = ClockRecord("another boot", 900_000, {"live/0": ShardClock(700_000)})
    house = House(600_000, record=record, wall_ms=700_000 + DAY_MS)
    assert house.times() == [700_000]
    house.go_on(AGREED_MS - 10_000)
    assert house.times() == [700_000 + AGREED_MS - 10_000]
    house.go_on(10_000)
    assert house.times() == [house.wall_ms]
    assert house.stores[0] is not None
    assert house.stores[0].postponed == [(700_000, DAY_MS, house.wall_ms)], "what was saved since is not older by a day"


def test_saves_in_doubt_are_postponed_before_clock_advances() -> None:
    house = House(0, 0)
    house.go_on(AGREED_MS)
    house.wall_ms += DAY_MS
    assert house.stores[0] is not None
    house.stores[0].full = True
    house.go_on(AGREED_MS + 10_000)
    assert house.times() == [house.wall_ms - DAY_MS, house.wall_ms]
    house.stores[0].full = False
    house.go_on(1)
    assert house.times() == [house.wall_ms] * 2
    assert len(house.stores[0].postponed) == 1


def test_expired_fragments_are_swept_despite_endless_doubt() -> None:
    house = House(0)
    for _ in range(SWEEP_IN_DOUBT_MS // 60_000):
        assert not house.clock.may_sweep(house.shards[0], house.monotonic_ms)
        house.wall_ms += 60_000
        house.go_on(60_000)
    assert house.clock.may_sweep(house.shards[0], house.monotonic_ms)


def test_clocks_are_recorded_each_minute_and_when_set() -> None:
    house = House(0)
    house.go_on(600_000)
    assert 10 <= len(house.records) <= 13
    count = len(house.records)
    house.wall_ms += DAY_MS
    house.clock.look()
    assert len(house.records) == count + 1
    assert house.records[-1] == ClockRecord(
        "this boot", house.monotonic_ms, {"live/0": ShardClock(house.times()[0], house.times()[0])}
    )


def test_failed_record_write_is_tried_again() -> None:
    house = House(0)
    house.full = True
    house.go_on(120_000)
    assert house.records == []
    house.full = False
    house.go_on(60_000)
    assert house.records


@pytest.mark.parametrize(
    ("stored_ms", "expected_ms"),
    [
        ({"a": 0, "b": 0}, {"a": 5_000, "b": 5_000}),
        ({"a": 4_000, "b": 0}, {"a": 4_000, "b": 4_000}),
        ({"a": 4_000, "b": 100}, {"a": 4_000, "b": 4_000}),
        ({"a": 9 * DAY_MS, "b": 0}, {"a": 9 * DAY_MS, "b": 5_000}),
        ({"a": 9 * DAY_MS, "b": 100}, {"a": 9 * DAY_MS, "b": 100}),
    ],
)
def test_shards_without_record_begin_with_newest_passed_commit(
    stored_ms: Mapping[str, int], expected_ms: Mapping[str, int]
) -> None:
    first = first_clocks(stored_ms, None, "boot", 5_000, 70)
    assert {key: clock.clock_ms for key, clock in first.items()} == expected_ms


def test_record_is_kept_in_file_unless_corrupt(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record = ClockRecord(boot_name(), 12, {"live/0": ShardClock(5, 4)})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert boot_name() == boot_name()
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]
    (tmp_path / RECORD_FILE).write_bytes(b"{")
    assert read_record(tmp_path) is None


def test_the_real_clocks_are_the_default() -> None:
    shard = OwnedShard("live", 0, 1, frozenset(), cast(Shard, StoreOfTime(0)))
    clock = Clock([shard])
    assert shard.now_ms(clock.look()) > 1_700_000_000_000
    assert abs(clock.wall_offset_ms() - shard.offset_ms) < 1_000
