"""The times at which nodes and exchanges are looked at again."""

import math

from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.router.dispatch.timetable import Timetable


def test_earliest_time_asked_for_counts() -> None:
    times: Timetable[str] = Timetable()
    times.schedule("a", 5.0)
    times.schedule("a", 3.0)
    times.schedule("a", 4.0)
    assert times.earliest == 3.0
    assert times.pop_due(2.9) == [] and len(times) == 1
    assert times.pop_due(3.0) == ["a"] and times.earliest == math.inf


def test_infinite_time_is_never() -> None:
    times: Timetable[str] = Timetable()
    times.schedule("a", math.inf)
    assert "a" not in times and times.pop_due(1e300) == []


def test_cancelled_key_is_not_due() -> None:
    times: Timetable[str] = Timetable()
    times.schedule("a", 1.0)
    times.schedule("b", 2.0)
    times.cancel("a")
    times.cancel("c")
    assert times.pop_due(1.5) == [] and times.earliest == 2.0
    assert times.drain() == ["b"] and times.earliest == math.inf


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))), st.integers(0, 9))
def test_due_keys_are_those_whose_time_has_come(asked: list[tuple[int, int]], now: int) -> None:
    times: Timetable[int] = Timetable()
    expected: dict[int, int] = {}
    for key, at in asked:
        times.schedule(key, float(at))
        expected[key] = min(at, expected.get(key, at))
    assert times.earliest == min(expected.values(), default=math.inf)
    assert set(times.pop_due(float(now))) == {key for key, at in expected.items() if at <= now}
    assert times.earliest == min([at for at in expected.values() if at > now], default=math.inf)
