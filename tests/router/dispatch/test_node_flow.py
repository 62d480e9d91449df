"""Flow control towards one node, by itself and against a model of it."""

import math
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dawnchorus.router.dispatch.circuit_breaker import BreakerState
from dawnchorus.router.dispatch.congestion_window import WINDOW_BYTES_MAX
from dawnchorus.router.dispatch.exchange import Exchange
from dawnchorus.router.dispatch.node_flow import QUEUE_REQUESTS_MAX, NodeFlow, Offer
from dawnchorus.wire.cluster.topology import AdmissionSpec, BreakerSpec
from tests.support.internals import exchange

NEVER = BreakerSpec(requests_min=1_000_000, consecutive_timeouts=1_000_000)


def flow_with(*requests: Exchange, up: bool = True, breaker: BreakerSpec = NEVER) -> NodeFlow:
    """Return a flow, connected unless said otherwise, with these exchanges offered."""
    flow = NodeFlow(breaker, AdmissionSpec(in_flight_max=1_000, queue_share=0.25))
    if up:
        flow.handle_up(0.0)
    for request in requests:
        flow.offer(request, 0.0)
    return flow


def poll_all(flow: NodeFlow, now: float = 0.0) -> list[Exchange]:
    polled: list[Exchange] = []
    while (exchange := flow.poll_send(now)) is not None:
        polled.append(exchange)
    return polled


def open_breaker(flow: NodeFlow) -> None:
    """Let a request of a flow time out at one second; its breaker opens at the first."""
    late = exchange(deadline=1.0)
    flow.offer(late, 0.0)
    flow.cancel(late, 1.0)
    assert flow.breaker.state is BreakerState.OPEN


def granted() -> bool:
    return True


def test_nothing_is_sent_while_node_is_disconnected() -> None:
    request = exchange()
    flow = flow_with(up=False)
    assert flow.offer(request, 0.0) is Offer.WAITS
    assert flow.poll_send(0.0) is None
    flow.handle_up(0.0)
    assert flow.poll_send(0.0) is request


def test_admitted_exchange_is_sent_at_once_and_numbered() -> None:
    first, second = exchange(), exchange()
    flow = flow_with()
    assert flow.offer(first, 3.0) is flow.offer(second, 3.0) is Offer.GO
    assert first.number != second.number
    assert first.sent_at == 3.0 and first.sendings == 1
    assert flow.find(first.number) is first


def test_requests_beyond_the_window_wait_for_an_answer() -> None:
    first, second = exchange(WINDOW_BYTES_MAX - 10), exchange(11)
    flow = flow_with(first, second)
    assert flow.poll_send(0.0) is None
    flow.handle_answered(first, 0.1)
    assert flow.poll_send(0.1) is second


def test_nobody_overtakes_what_waits() -> None:
    first, large, small = exchange(10), exchange(WINDOW_BYTES_MAX), exchange(10, caller="other")
    flow = flow_with(first, large)
    assert flow.offer(small, 0.0) is Offer.WAITS
    flow.handle_answered(first, 0.1)
    assert flow.poll_send(0.1) is large


def test_broken_connections_exchanges_are_repeated_first_in_order() -> None:
    requests = [exchange(), exchange(), exchange(WINDOW_BYTES_MAX)]
    flow = flow_with(*requests)
    assert flow.handle_down(1.0, granted) == []
    assert flow.poll_send(1.0) is None
    flow.handle_up(1.0)
    assert poll_all(flow, 1.0) == requests[:2]
    assert [request.sendings for request in requests] == [2, 2, 0]


def test_broken_connection_loses_unrepeatable_exchanges() -> None:
    save, read, waiting_save = exchange(repeatable=False), exchange(), exchange(WINDOW_BYTES_MAX, repeatable=False)
    flow = flow_with(save, read, waiting_save)  # the last was never sent, so it is not lost
    assert flow.handle_down(1.0, granted) == [save]
    flow.handle_up(1.0)
    assert flow.poll_send(1.0) is read
    flow.handle_answered(read, 1.0)
    assert poll_all(flow, 1.0) == [waiting_save]


def test_broken_connection_repeats_within_the_budget() -> None:
    requests = [exchange() for _ in range(5)]
    flow = flow_with(*requests)
    left = [True, True]
    lost = flow.handle_down(1.0, lambda: bool(left) and left.pop())
    assert len(lost) == 3
    flow.handle_up(1.0)
    assert set(poll_all(flow, 1.0)) == set(requests) - set(lost)


def test_large_call_after_break_leaves_others_their_retries() -> None:
    large = [exchange(caller="large") for _ in range(50)]
    single = [exchange(caller=f"single {number}") for number in range(5)]
    flow = flow_with(*large, *single)
    left = [True] * 10
    lost = flow.handle_down(1.0, lambda: bool(left) and left.pop())
    assert not set(lost) & set(single) and len(lost) == 45
    flow.handle_up(1.0)
    assert poll_all(flow, 1.0) == [*large[:5], *single]


def test_broken_connection_never_repeats_late_exchanges() -> None:
    late = exchange(deadline=0.9)
    assert flow_with(late).handle_down(1.0, granted) == [late]


def test_a_break_opens_the_window_again() -> None:
    flow = flow_with(exchange(WINDOW_BYTES_MAX, repeatable=False), exchange(WINDOW_BYTES_MAX))
    assert flow.poll_send(0.0) is None
    flow.handle_down(1.0, granted)
    flow.handle_up(1.0)
    assert flow.poll_send(1.0) is not None


def test_a_reply_to_an_earlier_sending_finds_nothing() -> None:
    request = exchange()
    flow = flow_with(request)
    earlier = request.number
    flow.handle_down(1.0, granted)
    flow.handle_up(1.0)
    poll_all(flow, 1.0)
    assert flow.find(earlier) is None
    assert flow.find(request.number) is request


def test_cancel_returns_whether_exchange_is_in_flight() -> None:
    sent, waiting = exchange(), exchange(WINDOW_BYTES_MAX)
    flow = flow_with(sent, waiting)
    assert flow.cancel(waiting, 0.0) is False
    assert flow.cancel(sent, 0.0) is True
    assert flow.cancel(sent, 0.0) is False
    assert len(flow) == 0
    assert (flow.window.in_flight, flow.window.expected_bytes) == (0, 0)


def test_unsent_exchange_goes_first_again() -> None:
    first, second = exchange(), exchange()
    flow = flow_with(first, second)
    flow.handle_unsent(second, 0.0)
    flow.handle_unsent(first, 0.0)
    assert [request.sendings for request in (first, second)] == [0, 0]
    assert poll_all(flow) == [first, second]


def test_overloaded_node_is_left_alone_until_its_time() -> None:
    rejected, other = exchange(), exchange()
    flow = flow_with(rejected)
    flow.handle_overloaded(rejected, 1.0, 0.5)
    flow.send_again(rejected, 1.0)
    assert flow.offer(other, 1.2) is Offer.WAITS
    assert flow.poll_send(1.4) is None
    assert poll_all(flow, 1.5) == [rejected, other]


def test_node_with_too_many_writes_still_gets_reads() -> None:
    writing = exchange(repeatable=False)
    assert writing.waits_for_disk
    flow = flow_with(writing)
    before = flow.window.bytes
    flow.handle_overloaded(writing, 1.0, 0.5)
    assert flow.window.bytes == before
    assert flow.offer(exchange(), 1.1) is Offer.GO


def test_overloaded_node_rejects_exchanges_due_before_its_time() -> None:
    rejected = exchange()
    flow = flow_with(rejected)
    flow.handle_overloaded(rejected, 1.0, 0.6)
    assert flow.offer(exchange(deadline=1.5), 1.0) is Offer.FULL
    assert flow.offer(exchange(deadline=1.7), 1.0) is Offer.WAITS


def test_unsent_late_exchange_does_not_count_against_node() -> None:
    flow = flow_with(*[exchange(deadline=1.0) for _ in range(200)], up=False)
    flow.handle_up(2.0)
    before = flow.window.bytes
    while (late := flow.poll_send(2.0)) is not None:
        flow.drop(late)
        assert late.sendings == 0
    assert len(flow) == 0 and flow.window.bytes == before


def test_newcomers_are_rejected_if_others_wait_long() -> None:
    flow = flow_with(exchange(), exchange(WINDOW_BYTES_MAX, caller="a"))
    assert flow.offer(exchange(caller="b", deadline=0.2 + 1.0), 0.2) is Offer.WAITS
    assert flow.offer(exchange(caller="c", deadline=0.3 + 1.0), 0.3) is Offer.FULL
    assert flow.offer(exchange(caller="d", deadline=0.3 + 10.0), 0.3) is Offer.WAITS  # it has time
    assert flow.offer(exchange(caller="e", deadline=0.3 + 1.0, guarded=False), 0.3) is Offer.WAITS


def test_waiting_for_connection_is_no_sign_of_lag() -> None:
    flow = flow_with(exchange(WINDOW_BYTES_MAX), exchange(WINDOW_BYTES_MAX, caller="a"), up=False)
    flow.handle_up(50.0)
    assert flow.poll_send(50.0) is not None
    assert flow.offer(exchange(caller="b", deadline=51.0), 50.1) is Offer.WAITS
    assert flow.offer(exchange(caller="c", deadline=51.4), 50.4) is Offer.FULL


def test_what_waits_is_bounded() -> None:
    flow = flow_with(up=False)
    offers = [flow.offer(exchange(), 0.0) for _ in range(QUEUE_REQUESTS_MAX + 1)]
    assert offers[-2:] == [Offer.WAITS, Offer.FULL]


def test_consecutive_timeouts_mark_node_down_until_a_probe() -> None:
    flow = flow_with(breaker=BreakerSpec(consecutive_timeouts=2, retry_after_s=5.0))
    for second in range(2):
        request = exchange(deadline=second + 1.0)
        assert flow.offer(request, float(second)) is Offer.GO
        flow.cancel(request, second + 1.0)
    assert flow.breaker.state is BreakerState.OPEN
    assert flow.offer(exchange(), 2.1) is Offer.OPEN
    assert flow.offer(exchange(guarded=False), 2.1) is not Offer.OPEN
    probe = exchange()
    assert flow.offer(probe, 7.1) is Offer.GO
    assert flow.offer(exchange(), 7.1) is Offer.OPEN
    flow.handle_answered(probe, 7.2)
    assert flow.offer(exchange(), 7.2) is Offer.GO


def test_late_node_is_slow_and_not_dead() -> None:
    flow = flow_with(breaker=BreakerSpec(consecutive_timeouts=2, requests_min=1_000))
    for second in range(10):
        request = exchange(deadline=second + 1.0)
        flow.offer(request, float(second))
        flow.cancel(request, second + 1.0)
        flow.handle_stray(second + 1.1)
    assert flow.breaker.state is BreakerState.CLOSED


def test_marked_down_node_returns_all_but_unguarded_exchanges() -> None:
    waiting, question = exchange(deadline=9.0), exchange(guarded=False)
    flow = flow_with(waiting, question, up=False, breaker=BreakerSpec(consecutive_timeouts=1))
    assert flow.rejected_by_breaker() == []
    open_breaker(flow)
    assert flow.rejected_by_breaker() == [waiting]
    assert len(flow) == 1


def patient(deadline: float = 1e6) -> Exchange:
    made = exchange(deadline=deadline, caller=object())
    made.patient = True
    return made


def test_patient_exchange_waits_and_probes_marked_down_node() -> None:
    flow = flow_with(breaker=BreakerSpec(consecutive_timeouts=1, retry_after_s=5.0))
    open_breaker(flow)
    first, second, third = patient(), patient(), patient()
    assert [flow.offer(request, 1.5) for request in (first, second, third)] == [Offer.WAITS] * 3
    assert flow.offer(exchange(), 1.5) is Offer.OPEN, "an impatient one fails at once"
    assert flow.polls_at(1.5) == 6.0 and poll_all(flow, 5.9) == []
    assert poll_all(flow, 6.0) == [first] and flow.polls_at(6.0) == math.inf
    assert flow.cancel(second, 6.1) is False
    flow.handle_answered(first, 6.1)
    assert poll_all(flow, 6.1) == [third] and len(flow) == 1


def test_patient_exchange_survives_mark_down_and_failed_probe() -> None:
    flow = flow_with(up=False, breaker=BreakerSpec(consecutive_timeouts=1, requests_min=1, retry_after_s=5.0))
    first, second, other = patient(), patient(deadline=20.0), exchange()
    for request in (first, second, other):
        assert flow.offer(request, 0.0) is Offer.WAITS
    open_breaker(flow)
    assert flow.rejected_by_breaker() == [other] and len(flow) == 2
    flow.handle_up(1.0)
    assert poll_all(flow, 1.0) == [first, second], "its breaker is closed by that"
    assert flow.handle_down(2.0, granted) == [] and flow.rejected_by_breaker() == []
    assert set(flow.drain()) == {first, second} and len(flow) == 0


def test_patience_ends_at_deadline_without_counting_against_node() -> None:
    flow = flow_with(breaker=BreakerSpec(consecutive_timeouts=1, retry_after_s=5.0))
    open_breaker(flow)
    request = patient(deadline=3.0)
    flow.offer(request, 1.5)
    assert flow.cancel(request, 3.0) is False
    assert flow.polls_at(3.0) == math.inf and len(flow) == 0
    assert flow.breaker.admits_at == 6.0


def test_drain_gives_everything_back_once() -> None:
    sent, waiting = exchange(), exchange(WINDOW_BYTES_MAX)
    flow = flow_with(sent, waiting)
    assert set(flow.drain()) == {sent, waiting}
    assert len(flow) == 0
    assert flow.drain() == []


class FlowAgainstItsModel(RuleBasedStateMachine):
    """A flow with one caller behaves as two plain lists would, and never uses a number twice."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = NodeFlow(NEVER, AdmissionSpec(in_flight_max=4))
        self.up = False
        self.waiting = deque[Exchange]()
        self.sent: list[Exchange] = []
        self.numbers: set[int] = set()

    def has_room(self, request: Exchange) -> bool:
        on_their_way = sum(sent.expected_bytes for sent in self.sent)
        return not self.sent or (len(self.sent) < 4 and on_their_way + request.expected_bytes <= self.flow.window.bytes)

    def note_sent(self, request: Exchange) -> None:
        assert request.number not in self.numbers
        self.numbers.add(request.number)
        self.sent.append(request)

    @rule(
        size=st.sampled_from([0, 1, WINDOW_BYTES_MAX // 3, WINDOW_BYTES_MAX // 2, WINDOW_BYTES_MAX * 2]),
        repeatable=st.booleans(),
    )
    def offer(self, size: int, repeatable: bool) -> None:
        request = exchange(size, repeatable=repeatable)
        goes = self.up and not self.waiting and self.has_room(request)
        assert self.flow.offer(request, 0.0) is (Offer.GO if goes else Offer.WAITS)
        if goes:
            self.note_sent(request)
        else:
            self.waiting.append(request)

    @rule()
    def poll(self) -> None:
        request = self.flow.poll_send(0.0)
        if not (self.up and self.waiting and self.has_room(self.waiting[0])):
            assert request is None
            return
        assert request is self.waiting[0]
        self.note_sent(self.waiting.popleft())

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        assert self.flow.find(request.number) is request
        self.flow.handle_answered(request, 0.0)
        assert self.flow.find(request.number) is None

    @precondition(lambda self: self.sent)
    @rule()
    def unsent(self) -> None:
        request = self.sent.pop()
        self.flow.handle_unsent(request, 0.0)
        self.waiting.appendleft(request)

    @precondition(lambda self: self.sent or self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        requests = [*self.sent, *self.waiting]
        request = requests[data.draw(st.integers(0, len(requests) - 1))]  # decision 0007: no weak reference to it
        assert self.flow.cancel(request, 0.0) is (request in self.sent)
        if request in self.sent:
            self.sent.remove(request)
        else:
            self.waiting.remove(request)

    @rule()
    def come_up(self) -> None:
        self.flow.handle_up(0.0)
        self.up = True

    @rule()
    def go_down(self) -> None:
        lost = [request for request in self.sent if not request.repeatable]
        assert self.flow.handle_down(0.0, granted) == lost
        self.waiting.extendleft(reversed([request for request in self.sent if request.repeatable]))
        self.sent.clear()
        self.up = False

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.flow) == len(self.sent) + len(self.waiting)
        assert self.flow.up is self.up
        assert self.flow.window.in_flight == len(self.sent)
        assert self.flow.window.expected_bytes == sum(request.expected_bytes for request in self.sent)


TestFlowAgainstItsModel = FlowAgainstItsModel.TestCase
TestFlowAgainstItsModel.settings = settings(max_examples=60, stateful_step_count=40)
