"""The dispatcher by itself on a hand-driven clock: events in; requests to send, and their times, out."""

import math
from collections.abc import Sequence

import pytest

from dawnchorus.router.dispatch.dispatcher import Dispatcher
from dawnchorus.router.dispatch.exchange import Exchange
from dawnchorus.router.dispatch.node_flow import Offer
from dawnchorus.wire.cluster.topology import AdmissionSpec, RetrySpec
from dawnchorus.wire.protocol.messages import (
    PONG,
    Cancel,
    Fault,
    FaultCode,
    ScanReply,
    SectionStatus,
    decode_request,
    encode,
)
from tests.support.fake_nodes import fake_topology
from tests.support.internals import call_exchange, failure_of, kept_exchanges, open_breaker, reply_of

NODES = ("id-1", "live-1", "old-1")


def dispatcher(*, up: Sequence[str] = NODES, in_flight_max: int = 256, retries: RetrySpec | None = None) -> Dispatcher:
    """Return a dispatcher to three nodes, with no jitter, at time 0."""
    made = Dispatcher(lambda: 0.0)
    made.handle_topology(
        fake_topology(admission=AdmissionSpec(in_flight_max=in_flight_max), retries=retries or RetrySpec())
    )
    for node in up:
        made.handle_up(node, 0.0)
    return made


def call(node: str = "id-1", *, deadline: float = 10.0, durable: bool = False, status: bool = False) -> Exchange:
    return call_exchange(node, deadline, durable=durable, status=status)


def sent(of: Dispatcher, now: float) -> list[Exchange]:
    """Return all exchanges that are to be sent now."""
    out: list[Exchange] = []
    while (exchange := of.poll_send(now)) is not None:
        out.append(exchange)
    return out


def answer(number: int) -> memoryview:
    return memoryview(encode(ScanReply(number, SectionStatus.OK, [], True)))


def overloaded(number: int, retry_after_s: float) -> memoryview:
    return memoryview(encode(Fault(number, FaultCode.OVERLOADED, "busy", int(retry_after_s * 1e6))))


def test_submitted_exchanges_are_sent_once_in_order() -> None:
    made, calls = dispatcher(), [call(node) for node in NODES]
    assert made.submit(calls, 1.0) == []
    assert sent(made, 1.0) == calls
    assert sent(made, 1.0) == []
    assert [exchange.number for exchange in calls] == [1, 1, 1]
    assert made.requests_sent == 3


def test_last_reply_frees_the_window_for_the_next() -> None:
    made = dispatcher(in_flight_max=1)
    first, second = call(), call()
    made.submit([first], 1.0)
    made.submit([second], 1.0)
    assert sent(made, 1.0) == [first]
    assert made.handle_frame("id-1", answer(first.number), 1.001) is None
    assert reply_of(first) and not failure_of(first)
    assert sent(made, 1.001) == [second]


def test_unconnected_node_is_sent_nothing() -> None:
    made, waiting = dispatcher(up=()), call()
    made.submit([waiting], 1.0)
    assert sent(made, 1.0) == []
    made.handle_up("id-1", 2.0)
    assert sent(made, 2.0) == [waiting]


def test_silent_node_is_sent_nothing_until_heard() -> None:
    made, waiting = dispatcher(), call()
    made.handle_silent("id-1")
    made.submit([waiting], 1.0)
    assert sent(made, 1.0) == [] and not made.is_up("id-1")
    made.handle_heard("id-1", 2.0)
    assert sent(made, 2.0) == [waiting]


def test_connection_without_room_keeps_the_order() -> None:
    made, calls = dispatcher(), [call() for _ in range(4)]
    other = call("live-1")
    made.submit([*calls, other], 1.0)
    first = made.poll_send(1.0)
    second = made.poll_send(1.0)
    assert [first, second] == calls[:2] and second is not None
    made.handle_unsent(second, 1.0)
    assert sent(made, 1.0) == [other], "the other node has room"
    assert made.requests_sent == 2
    assert made.handle_frame("id-1", answer(calls[0].number), 1.1) is None
    assert sent(made, 1.1) == calls[1:]
    assert [exchange.sendings for exchange in calls] == [1, 1, 1, 1]
    assert kept_exchanges(made) == {"exchanges": 4, "in flight": 4, "expected bytes": 4_000}


def test_unsent_request_counts_once_in_the_retry_budget() -> None:
    made, waiting = dispatcher(retries=RetrySpec(share=0.5, per_s=0.0)), call()
    made.submit([waiting], 1.0)
    for _ in range(10):
        assert made.poll_send(1.0) is waiting
        made.handle_unsent(waiting, 1.0)
        made.handle_heard("id-1", 1.0)
    assert not made.retries.withdraw(1.0), "ten attempts to send one request are no ten requests"


def test_requests_of_broken_connection_get_new_numbers() -> None:
    made, calls = dispatcher(), [call(), call()]
    made.submit(calls, 1.0)
    sent(made, 1.0)
    before = [exchange.number for exchange in calls]
    made.handle_down("id-1", 1.1)
    assert sent(made, 1.1) == []
    made.handle_up("id-1", 1.2)
    assert sent(made, 1.2) == calls
    assert not set(before) & {exchange.number for exchange in calls}
    assert made.handle_frame("id-1", answer(before[0]), 1.3) is None
    assert made.stray_replies == 1 and reply_of(calls[0]) is None, "no reply to an earlier sending is taken for it"


def test_broken_connection_fails_what_may_not_be_repeated() -> None:
    made, lost = dispatcher(), call(durable=True)
    made.submit([lost], 1.0)
    sent(made, 1.0)
    made.handle_down("id-1", 1.1)
    assert failure_of(lost) == "the connection to node 'id-1' broke"
    assert kept_exchanges(made) == {}


def test_retries_beyond_the_budget_fail() -> None:
    made, calls = dispatcher(retries=RetrySpec(share=0.0, per_s=0.1)), [call(), call()]
    made.submit(calls, 1.0)
    sent(made, 1.0)
    made.handle_down("id-1", 1.1)
    made.handle_up("id-1", 1.2)
    assert len(sent(made, 1.2)) == 1
    assert sum(bool(failure_of(exchange)) for exchange in calls) == 1


def test_overloaded_node_is_left_alone_until_its_time() -> None:
    made, rejected, other = dispatcher(), call(), call()
    made.submit([rejected], 1.0)
    sent(made, 1.0)
    assert made.handle_frame("id-1", overloaded(rejected.number, 0.5), 1.1) is None
    assert sent(made, 1.1) == []
    made.submit([other], 1.2)
    assert sent(made, 1.2) == []
    assert made.poll_timeout() == pytest.approx(1.6)
    made.handle_timeout(1.59)  # a timer that fires early
    assert sent(made, 1.59) == [] and made.poll_timeout() == pytest.approx(1.6)
    made.handle_timeout(1.61)
    assert sent(made, 1.61) == [rejected, other]
    assert made.poll_timeout() == math.inf


def test_overloaded_node_is_not_asked_after_the_deadline() -> None:
    made, rejected = dispatcher(), call(deadline=1.5)
    made.submit([rejected], 1.0)
    sent(made, 1.0)
    made.handle_frame("id-1", overloaded(rejected.number, 0.5), 1.1)
    assert "OVERLOADED" in failure_of(rejected)
    made.handle_timeout(9.0)
    assert sent(made, 9.0) == []


def test_times_are_those_asked_for_earliest_first() -> None:
    made, calls = dispatcher(), [call(node) for node in NODES]
    made.submit(calls, 1.0)
    sent(made, 1.0)
    for exchange, pause_s in zip(calls, (0.9, 0.3, 0.6), strict=True):
        made.handle_frame(exchange.node, overloaded(exchange.number, pause_s), 1.0)
    sent(made, 1.0)
    for at, node in ((1.3, "live-1"), (1.6, "old-1"), (1.9, "id-1")):
        assert made.poll_timeout() == pytest.approx(at)
        made.handle_timeout(at + 1e-9)
        assert [exchange.node for exchange in sent(made, at + 1e-9)] == [node]


def test_nothing_is_sent_between_frames_that_came_together() -> None:
    made = dispatcher(in_flight_max=1)
    first, second = call(), call()
    made.submit([first], 1.0)
    made.submit([second], 1.0)
    sent(made, 1.0)
    made.is_receiving = True
    made.handle_frame("id-1", answer(first.number), 1.1)
    assert sent(made, 1.1) == []
    made.is_receiving = False
    assert sent(made, 1.1) == [second]


def test_cancelled_exchange_is_forgotten_and_its_node_notified() -> None:
    made, calls = dispatcher(), [call(), call("live-1"), call("old-1", deadline=1.002)]
    made.submit(calls, 1.0)
    sent(made, 1.0)
    cancels = made.cancel(calls, 1.0)
    assert [(node, decode_request(frame)) for node, frame in cancels] == [
        ("id-1", Cancel([1])),
        ("live-1", Cancel([1])),
    ], "the third is nearly late: its node drops it by itself"
    assert kept_exchanges(made) == {}
    made.handle_frame("id-1", answer(1), 1.1)
    assert reply_of(calls[0]) is None and made.stray_replies == 1


def test_exchange_too_late_to_be_sent_is_dropped() -> None:
    made, late = dispatcher(up=()), call(deadline=2.0)
    made.submit([late], 1.0)
    made.handle_up("id-1", 2.0)
    assert sent(made, 2.0) == [] and made.requests_sent == 0


def test_answer_of_another_kind_fails_its_exchange_alone() -> None:
    made, calls = dispatcher(), [call(status=True), call()]
    made.submit(calls, 1.0)
    sent(made, 1.0)
    stray = made.handle_frame("id-1", answer(calls[0].number), 1.1)
    assert stray is not None and not stray.is_forgotten
    assert "answered something else" in failure_of(calls[0]) and not failure_of(calls[1])
    assert kept_exchanges(made) == {"exchanges": 1, "in flight": 1, "expected bytes": 1_000}


@pytest.mark.parametrize("frame", [b"", b"\xff\x00 nothing of ours", PONG[:1]])
def test_malformed_frame_is_reported_and_ends_nothing(frame: bytes) -> None:
    made, waiting = dispatcher(), call()
    made.submit([waiting], 1.0)
    sent(made, 1.0)
    assert made.handle_frame("id-1", memoryview(frame), 1.1) is not None
    assert made.handle_frame("id-1", memoryview(PONG), 1.1) is None
    assert made.stray_replies == 1 and not failure_of(waiting)


def test_node_that_forgot_router_is_greeted_again() -> None:
    made, waiting = dispatcher(), call()
    made.submit([waiting], 1.0)
    sent(made, 1.0)
    stray = made.handle_frame("id-1", memoryview(encode(Fault(waiting.number, FaultCode.NO_HELLO, "who?"))), 1.1)
    assert stray is not None and stray.is_forgotten
    assert not failure_of(waiting), "it is repeated on the next connection"


def test_open_breaker_rejects_newcomers_and_waiting_exchanges() -> None:
    made = dispatcher(in_flight_max=1)
    first, waiting = call(), call()
    made.submit([first], 1.0)
    made.submit([waiting], 1.0)
    sent(made, 1.0)
    open_breaker(made, "id-1", 1.0)
    made.cancel([first], 1.0)
    assert "marked down" in failure_of(waiting)
    newcomer = call()
    assert made.submit([newcomer], 1.1) == [(newcomer, Offer.OPEN)]
    assert kept_exchanges(made) == {}


def test_close_fails_everything_once() -> None:
    made, calls = dispatcher(up=["id-1"]), [call(), call("live-1"), call("id-1")]
    made.submit(calls, 1.0)
    sent(made, 1.0)
    made.handle_frame("id-1", overloaded(calls[0].number, 0.5), 1.1)
    made.close("closed")
    assert [failure_of(exchange) for exchange in calls] == ["closed"] * 3
    assert made.poll_timeout() == math.inf and sent(made, 9.0) == []
    assert kept_exchanges(made) == {}
