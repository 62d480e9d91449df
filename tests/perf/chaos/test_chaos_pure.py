"""Counts, plans and decisions of chaos, on a hand-driven clock."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.perf.chaos.counts import Ending, Latency, PhaseCounts, latency_of
from dawnchorus.perf.chaos.ramp import RATES_MAX, Ramp
from dawnchorus.perf.chaos.schedule import BEHIND_NS_MAX, COUNT_MAX, TURN_STARTS_MAX, Schedule
from dawnchorus.perf.chaos.script import (
    DEFAULT_PHASES,
    PHASE_NAMES,
    ScriptError,
    Step,
    Stretch,
    parse_phases,
    script,
    stretches,
)

MS = 1_000_000
DEADLINE_NS = 100 * MS

# --- counts ---


def counted(*wakes: tuple[int, int, Ending]) -> PhaseCounts:
    """Return counts of wakes with these planned starts and ends (ms), each asked for on time."""
    counts = PhaseCounts()
    for planned, ended, ending in wakes:
        counts.handle_start(planned * MS, planned * MS)
        counts.handle_end(planned * MS, planned * MS + DEADLINE_NS, ended * MS, ending, shed=False)
    return counts


def test_every_wake_is_counted_once_by_ending() -> None:
    counts = PhaseCounts()
    endings = [(Ending.COMPLETE, False), (Ending.DEGRADED, False), (Ending.DEGRADED, True), (Ending.FAILED, True)]
    for number, (ending, shed) in enumerate(endings):
        counts.handle_start(number, number)
        counts.handle_end(number, number + DEADLINE_NS, number + MS, ending, shed)
    counts.handle_start(9, 9)
    found = counts.counts(unsent=7)
    assert (found.offered, found.complete, found.degraded, found.failed) == (5, 1, 2, 1)
    assert (found.shed, found.stuck, found.unsent) == (2, 1, 7)
    assert found.shed_ms == found.latency_ms == found.complete_ms == Latency(1.0, 1.0, 1.0, 1.0)


def test_a_stalled_load_does_not_hide_the_stall() -> None:
    # Ten wakes were planned a millisecond apart. The process stalled for 50 ms, then each was asked for and took 1 ms.
    counts = PhaseCounts()
    for number in range(10):
        counts.handle_start(number * MS, 50 * MS)
        counts.handle_end(number * MS, 50 * MS + DEADLINE_NS, 51 * MS, Ending.COMPLETE, shed=False)
    found = counts.counts()
    assert found.latency_ms is not None and found.started_late_ms is not None
    assert found.latency_ms.max == 51.0 and found.latency_ms.p50 == 46.0
    assert found.started_late_ms.max == 50.0
    assert found.past_deadline_ms is None


def test_wake_past_deadline_is_counted_by_its_own() -> None:
    counts = PhaseCounts()
    counts.handle_start(0, 30 * MS)
    counts.handle_end(0, 30 * MS + DEADLINE_NS, 131 * MS, Ending.DEGRADED, shed=False)
    found = counts.counts().past_deadline_ms
    assert found is not None and found.max == 1.0


def test_percentile_is_smallest_value_not_exceeded() -> None:
    assert latency_of([]) is None
    assert latency_of([MS]) == Latency(1.0, 1.0, 1.0, 1.0)
    assert latency_of([number * MS for number in range(1_000, 0, -1)]) == Latency(500.0, 990.0, 999.0, 1000.0)
    assert latency_of([number * MS for number in range(1, 101)]) == Latency(50.0, 99.0, 100.0, 100.0)


@given(st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=2_000))
def test_percentiles_of_anything(nanoseconds: list[int]) -> None:
    found = latency_of(nanoseconds)
    assert found is not None
    for share, value in ((0.5, found.p50), (0.99, found.p99), (0.999, found.p999), (1.0, found.max)):
        below = sum(round(each / 1e6, 3) <= value for each in nanoseconds)
        assert below >= math.floor(share * len(nanoseconds))
        assert any(round(each / 1e6, 3) == value for each in nanoseconds)


def test_last_incomplete_wake_is_found() -> None:
    whole, broken = Ending.COMPLETE, Ending.DEGRADED
    assert counted((10, 11, whole), (20, 21, whole)).last_incomplete_ns(0) == 0
    assert counted((10, 11, whole), (20, 120, broken), (30, 31, whole)).last_incomplete_ns(5 * MS) == 15 * MS
    # Earlier ones do not count, and ends come in any order.
    mixed = counted((90, 91, whole), (60, 160, broken), (10, 110, broken))
    assert mixed.last_incomplete_ns(50 * MS) == 10 * MS
    # It is not known to be over before a later wake was complete.
    assert counted((10, 11, whole), (20, 120, broken)).last_incomplete_ns(0) is None
    assert counted().last_incomplete_ns(0) is None


def test_counts_of_what_came_later() -> None:
    counts = counted((10, 110, Ending.FAILED), (20, 22, Ending.COMPLETE), (30, 130, Ending.DEGRADED))
    counts.handle_start(40 * MS, 40 * MS)
    later = counts.counts(since_ns=20 * MS)
    assert (later.offered, later.complete, later.degraded, later.failed, later.stuck) == (2, 1, 1, 0, 0)
    assert counts.under_way == 1
    assert counts.complete_per_s(0.5) == 2.0


# --- schedule ---


@given(
    st.integers(min_value=0, max_value=10**15),
    st.floats(min_value=0.5, max_value=100_000),
    st.floats(min_value=0.001, max_value=2),
    st.sampled_from([1, MS, 5 * MS]),
    st.lists(st.integers(min_value=0, max_value=200 * MS), max_size=50),
)
def test_every_start_comes_once_in_time(begin: int, rate: float, seconds: float, tick: int, steps: list[int]) -> None:
    schedule, now = Schedule(begin, rate, seconds, tick), begin
    given_out: list[int] = []
    for step in steps:
        due = list(schedule.poll_due(now))
        assert len(due) <= TURN_STARTS_MAX
        assert all(schedule.planned_ns(number) <= now for number in due)
        given_out += due
        if schedule.left and len(due) < TURN_STARTS_MAX:
            assert schedule.next_ns > now, "a start that was due was kept back"
        now += step
    assert given_out == list(range(len(given_out)))
    assert schedule.left == schedule.count - len(given_out)
    plans = [schedule.planned_ns(number) for number in range(min(100, schedule.count))]
    assert all(0 <= later - earlier <= 1e9 / rate + tick + 1 for earlier, later in pairwise(plans))
    assert all((plan - begin) % tick == 0 for plan in plans)


def test_starts_of_one_tick_are_planned_together() -> None:
    schedule = Schedule(0, 1_000, 0.02, 5 * MS)
    assert [len(schedule.poll_due(now * MS)) for now in (0, 4, 5, 7, 17)] == [5, 0, 5, 0, 10]
    assert not schedule.left


def test_a_load_has_limits() -> None:
    assert Schedule(0, 1e6, 3_600).count == COUNT_MAX
    assert Schedule(0, 0.001, 1).count == 1
    late = Schedule(0, 100, 1)
    last_ns = late.planned_ns(99)
    assert not late.is_over(last_ns + BEHIND_NS_MAX)
    assert late.is_over(last_ns + BEHIND_NS_MAX + 1), "so far behind it gives up"
    assert late.left == 100
    while late.left:
        late.poll_due(last_ns)
    assert late.is_over(last_ns), "all are started"


# --- ramp ---


def ramped(ramp: Ramp, capacity: float, falling: float = 1.0) -> list[float]:
    """Return every rate that the ramp tries on a cluster of this capacity; overload leaves `falling` of it."""
    rates: list[float] = []
    while (rate := ramp.poll_rate()) is not None:
        rates.append(rate)
        ramp.handle_goodput(rate if rate <= capacity else capacity * falling)
    return rates


@pytest.mark.parametrize("capacity", [600, 1_000, 5_000, 20_000])
@pytest.mark.parametrize("falling", [1.0, 0.1])
def test_a_ramp_finds_about_the_best_goodput(capacity: float, falling: float) -> None:
    ramp = Ramp(500)
    rates = ramped(ramp, capacity, falling)
    assert 0.85 * capacity <= ramp.best_per_s <= capacity
    assert len(rates) <= RATES_MAX
    assert len([rate for rate in rates if rate > capacity / 0.9]) <= 5


def test_a_ramp_ends() -> None:
    assert len(ramped(Ramp(500), math.inf)) == 10
    slow = Ramp(500)
    assert len(ramped(slow, 100)) == 3 and slow.best_per_s == 100
    dead = Ramp(500)
    ramped(dead, 0)
    assert dead.best_per_s == 0


def test_two_bad_moments_do_not_end_a_ramp() -> None:
    ramp = Ramp(100)
    for share in (1.0, 0.2, 0.2, 1.0, 0.2, 0.2):
        rate = ramp.poll_rate()
        assert rate is not None
        ramp.handle_goodput(rate * share)
    assert ramp.poll_rate() is not None


# --- script ---


def test_phases_are_read_from_a_list() -> None:
    assert parse_phases("healthy, stopped,after") == ("healthy", "stopped", "after")
    assert parse_phases(",".join(DEFAULT_PHASES)) == DEFAULT_PHASES
    for wrong in ("", "healthy,,after", "nonsense"):
        with pytest.raises(ScriptError, match="permitted: healthy"):
            parse_phases(wrong)
    with pytest.raises(ScriptError, match="at most 100"):
        parse_phases(",".join(["healthy"] * 101))


def test_default_script_has_every_fault_within_three_minutes() -> None:
    assert set(DEFAULT_PHASES) == set(PHASE_NAMES)
    steps = script(DEFAULT_PHASES, 6.0)
    lengths = {step.phase: step.seconds for step in steps}
    assert lengths["flapping"] == 30 and lengths["overload"] == 20
    # Three clusters, the ramp and the ordinary rates beside overload: half a minute more.
    assert sum(step.seconds for step in steps) < 150


def test_a_script_is_cut_where_the_cluster_changes() -> None:
    def phases(*names: str) -> list[tuple[list[str], bool]]:
        cut = stretches([Step(name, 1.0) for name in names])
        return [([step.phase for step in stretch.steps], stretch.secluded) for stretch in cut]

    assert phases("healthy", "stopped", "after") == [(["healthy", "stopped", "after"], False)]
    assert phases("after", "healthy") == [(["after", "healthy"], False)]
    assert phases("late", "cut-off", "after", "after", "killed", "overload", "after") == [
        (["late"], False),
        (["cut-off", "after", "after"], True),
        (["killed"], False),
        (["overload", "after"], False),
    ]
    assert phases("cut-off", "overload", "healthy") == [
        (["cut-off"], True),
        (["overload"], False),
        (["healthy"], False),
    ]
    assert stretches([]) == []
    assert stretches([Step("cut-off", 2.0)]) == [Stretch((Step("cut-off", 2.0),), True)]
