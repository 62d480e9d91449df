"""The window of one node on a hand-driven clock."""

from collections import deque

from dawnchorus.router.dispatch.congestion_window import WINDOW_BYTES_MAX, Window
from dawnchorus.wire.cluster.topology import AdmissionSpec


def test_requests_that_fill_the_window_exactly_all_go() -> None:
    window = Window(AdmissionSpec())
    window.handle_sent(WINDOW_BYTES_MAX - 10)
    assert window.has_room(10)
    assert not window.has_room(11)


def test_one_request_always_goes_however_large() -> None:
    window = Window(AdmissionSpec())
    assert window.has_room(WINDOW_BYTES_MAX * 3)
    window.handle_sent(WINDOW_BYTES_MAX * 3)
    assert not window.has_room(1)


def test_requests_in_flight_never_exceed_the_bulkhead() -> None:
    window = Window(AdmissionSpec(in_flight_max=3))
    for _ in range(3):
        assert window.has_room(1)
        window.handle_sent(1)
    assert not window.has_room(1)
    window.handle_over(1)
    assert window.has_room(1)


def test_slow_answer_shrinks_window_below_flight_once() -> None:
    window = Window(AdmissionSpec(slow_share=0.5))
    for _ in range(10):
        window.handle_sent(100_000)
    window.handle_answered(0.6, 0.0, 1.0, 100_000)
    assert window.bytes == 700_000
    window.handle_answered(0.7, 0.1, 1.0, 100_000)  # sent before the decrease
    assert window.bytes == 700_000
    window.handle_answered(1.3, 0.65, 1.65, 100_000)
    assert window.bytes == 0.7 * 700_000


def test_a_tiny_deadline_says_nothing_of_the_node() -> None:
    window = Window(AdmissionSpec())
    window.handle_sent(1_000)
    before = window.bytes
    window.handle_answered(0.002, 0.0, 0.003, 1_000)
    window.handle_slow(0.005, 0.0)
    assert window.bytes == before


def test_timely_answers_grow_window_to_its_maximum() -> None:
    window = Window(AdmissionSpec())
    window.handle_sent(100_000)
    window.handle_slow(1.0, 0.5)
    before = window.bytes
    window.handle_answered(2.0, 1.9, 2.9, 100_000)
    assert window.bytes == before + 100_000
    for _ in range(100_000):
        window.handle_answered(2.0, 1.9, 2.9, 100_000)
    assert window.bytes == WINDOW_BYTES_MAX


def test_window_settles_where_node_answers_in_time() -> None:
    """Load a node that serves 100 requests of 1 KB a second for a minute with all that the window admits."""
    window, sent, now = Window(AdmissionSpec(slow_share=0.5)), deque[float](), 0.0
    latencies: list[float] = []
    for tick in range(6_000):
        now = tick * 0.01
        while window.has_room(1_000):
            window.handle_sent(1_000)
            sent.append(now)
        sent_at = sent.popleft()
        window.handle_answered(now, sent_at, sent_at + 1.0, 1_000)
        window.handle_over(1_000)
        latencies.append(now - sent_at)
    settled = latencies[3_000:]
    assert max(settled) < 1.0, "answers come within their budget"
    assert min(len(sent), 100 * min(settled)) > 1, "and the node always has something to do"
