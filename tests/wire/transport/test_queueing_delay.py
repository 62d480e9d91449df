"""The delay of requests queued in sockets, measured by two unrelated clocks."""

from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.transport.queueing_delay import TransitDelays

ROUTER = b"router"


def sent(at_s: float) -> int:
    return int(at_s * 1e6)


def test_delay_is_the_difference_from_the_quickest_request() -> None:
    delays = TransitDelays()
    assert delays.queued_s(ROUTER, sent(5_000.0), 100.0) == 0.0
    assert abs(delays.queued_s(ROUTER, sent(5_001.0), 101.5) - 0.5) < 1e-6
    assert delays.queued_s(ROUTER, sent(5_002.0), 101.9) == 0.0  # quicker than the first: the new measure
    assert abs(delays.queued_s(ROUTER, sent(5_003.0), 103.0) - 0.1) < 1e-6


def test_a_peer_that_says_nothing_is_never_late() -> None:
    delays = TransitDelays()
    delays.queued_s(ROUTER, sent(5_000.0), 100.0)
    assert delays.queued_s(ROUTER, 0, 1_000.0) == 0.0


def test_each_peer_has_a_clock_of_its_own() -> None:
    delays = TransitDelays()
    delays.queued_s(ROUTER, sent(5_000.0), 100.0)
    assert delays.queued_s(b"other", sent(1.0), 100.0) == 0.0
    delays.remove_peer(ROUTER)
    assert delays.queued_s(ROUTER, sent(1.0), 101.0) == 0.0


def test_clocks_that_drift_apart_are_followed() -> None:
    delays = TransitDelays()
    for second in range(0, 3_600, 5):  # this node's clock gains 100 us a second
        late_s = delays.queued_s(ROUTER, sent(second + 1.0), second * 1.0001)
        assert late_s <= 121 * 100e-6
    assert delays.queued_s(ROUTER, sent(3_601.0), 3_600 * 1.0001 + 2.0) >= 1.9


def test_clocks_are_compared_anew_after_idle_hour() -> None:
    delays = TransitDelays()
    delays.queued_s(ROUTER, sent(1.0), 0.0)
    assert delays.queued_s(ROUTER, sent(3_601.0), 3_600.18) == 0.0  # they drifted apart by 50 us a second


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 0.5)), min_size=1, max_size=50), st.floats(1, 1e6))
def test_delay_is_underestimated_by_the_quickest_at_most(requests: list[tuple[float, float]], offset_s: float) -> None:
    delays, now = TransitDelays(), 0.0
    for passed_s, on_its_way_s in requests:
        now += passed_s
        late_s = delays.queued_s(ROUTER, sent(now + offset_s), now + on_its_way_s)
        assert 0.0 <= late_s <= on_its_way_s + 1e-5
