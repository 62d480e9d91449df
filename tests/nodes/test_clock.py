"""The node's clock: never back, not below what its shards have seen, and aware of being set."""

from collections.abc import Sequence
from typing import cast

import pytest

from dawnchorus.fragment_stores.protocol import FragmentStore
from dawnchorus.nodes.clock import JUMP_MS, Clock
from dawnchorus.nodes.shards import OwnedShard


class Times:
    """Two clocks that a test sets."""

    def __init__(self, wall_ms: int = 1_000_000, monotonic_ms: int = 50) -> None:
        self.wall_ms = wall_ms
        self.monotonic_ms = monotonic_ms

    def clock(self, *shards_ms: int | None) -> Clock:
        """A clock over shards whose newest commits have these times; None for a shard that is not open."""
        return Clock(shards(shards_ms), lambda: self.wall_ms, lambda: self.monotonic_ms)

    def go_on(self, milliseconds: int) -> None:
        """Let both go on."""
        self.wall_ms += milliseconds
        self.monotonic_ms += milliseconds


class StoreOfTime:
    """A store of which the clock wants to know one thing."""

    def __init__(self, clock_ms: int) -> None:
        self.clock_ms = clock_ms


def shards(times: Sequence[int | None]) -> list[OwnedShard]:
    return [
        OwnedShard("live", number, 1, frozenset(), None if ms is None else cast(FragmentStore, StoreOfTime(ms)))
        for number, ms in enumerate(times)
    ]


def test_it_is_the_wall_clock() -> None:
    times = Times()
    clock = times.clock()
    assert clock.now_ms() == times.wall_ms
    times.go_on(7)
    assert clock.now_ms() == times.wall_ms


def test_it_never_goes_back() -> None:
    times = Times()
    clock = times.clock()
    before = clock.now_ms()
    times.wall_ms -= 3_600_000
    assert clock.now_ms() == before
    times.go_on(3_599_999)
    assert clock.now_ms() == before
    times.go_on(2)
    assert clock.now_ms() == before + 1


def test_it_begins_no_earlier_than_the_newest_commit_of_any_shard() -> None:
    times = Times()
    clock = times.clock(999_000, None, times.wall_ms + 500, 0)
    assert clock.now_ms() == times.wall_ms + 500
    times.go_on(501)
    assert clock.now_ms() == times.wall_ms


@pytest.mark.parametrize("jump_ms", [JUMP_MS + 1, -JUMP_MS - 1, 10**9])
def test_being_set_is_noticed_once(jump_ms: int) -> None:
    times = Times()
    clock = times.clock()
    times.go_on(60_000)
    assert not clock.has_jumped()
    times.wall_ms += jump_ms
    times.go_on(1_000)
    assert clock.has_jumped()
    times.go_on(1_000)
    assert not clock.has_jumped()


def test_being_slewed_is_no_jump() -> None:
    times = Times()
    clock = times.clock()
    for _ in range(100):
        times.go_on(1_000)
        times.wall_ms += 400
        assert not clock.has_jumped()


def test_the_real_clocks_are_the_default() -> None:
    clock = Clock([])
    assert clock.now_ms() > 1_700_000_000_000
    assert not clock.has_jumped()
