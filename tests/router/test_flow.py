"""Flow control towards one node, by itself and against a model of it."""

from collections import deque
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dawnchorus.router.flow import WINDOW_BYTES, NodeFlow


@dataclass(eq=False)
class Request:
    """An exchange, as flow control sees it."""

    expected_bytes: int = 1_000
    repeatable: bool = True
    number: int = 0


def up_with(*requests: Request) -> NodeFlow[Request]:
    """A connected flow with these waiting."""
    flow = NodeFlow[Request]()
    flow.handle_up()
    for request in requests:
        flow.add(request)
    return flow


def test_nothing_is_sent_while_the_node_is_not_connected() -> None:
    flow = NodeFlow[Request]()
    request = Request()
    flow.add(request)
    assert flow.poll_send() is None
    flow.handle_up()
    assert flow.poll_send() is request


def test_requests_beyond_the_window_wait_for_an_answer() -> None:
    first, second = Request(WINDOW_BYTES - 10), Request(11)
    flow = up_with(first, second)
    assert flow.poll_send() is first
    assert flow.poll_send() is None
    flow.handle_answered(first.number)
    assert flow.poll_send() is second


def test_requests_that_fill_the_window_exactly_all_go() -> None:
    flow = up_with(Request(WINDOW_BYTES - 10), Request(10))
    assert flow.poll_send() is not None
    assert flow.poll_send() is not None


def test_one_request_larger_than_the_window_goes_alone() -> None:
    small, huge, last = Request(1), Request(3 * WINDOW_BYTES), Request(1)
    flow = up_with(small, huge, last)
    assert flow.poll_send() is small
    assert flow.poll_send() is None
    flow.handle_answered(small.number)
    assert flow.poll_send() is huge
    assert flow.poll_send() is None


def test_after_a_break_what_was_sent_goes_again_first_and_in_order() -> None:
    requests = [Request(), Request(), Request()]
    flow = up_with(*requests)
    sent = [flow.poll_send(), flow.poll_send()]
    assert sent == requests[:2]
    assert flow.handle_down() == []
    assert flow.poll_send() is None
    flow.handle_up()
    assert [flow.poll_send() for _ in requests] == requests


def test_after_a_break_what_may_not_be_sent_twice_is_reported_lost() -> None:
    save, read, waiting_save = Request(repeatable=False), Request(), Request(repeatable=False)
    flow = up_with(save, read)
    flow.poll_send()
    flow.poll_send()
    flow.add(waiting_save)  # never sent, so it is not lost
    assert flow.handle_down() == [save]
    flow.handle_up()
    assert flow.poll_send() is read
    assert flow.poll_send() is waiting_save
    assert flow.poll_send() is None


def test_a_break_opens_the_window_again() -> None:
    large = Request(WINDOW_BYTES, repeatable=False)
    flow = up_with(large, Request(WINDOW_BYTES))
    flow.poll_send()
    assert flow.poll_send() is None
    flow.handle_down()
    flow.handle_up()
    assert flow.poll_send() is not None


def test_a_reply_to_an_earlier_sending_finds_nothing() -> None:
    request = Request()
    flow = up_with(request)
    flow.poll_send()
    earlier = request.number
    flow.handle_down()
    flow.handle_up()
    flow.poll_send()
    assert flow.find(earlier) is None
    assert flow.find(request.number) is request


def test_cancel_tells_whether_it_had_been_sent() -> None:
    sent, waiting = Request(), Request()
    flow = up_with(sent)
    flow.poll_send()
    flow.add(waiting)
    assert flow.cancel(waiting) is False
    assert flow.cancel(sent) is True
    assert flow.cancel(sent) is False
    assert len(flow) == 0


def test_what_the_connection_had_no_room_for_goes_first_again() -> None:
    first, second = Request(), Request()
    flow = up_with(first, second)
    flow.poll_send()
    flow.handle_unsent(first)
    assert [flow.poll_send(), flow.poll_send()] == [first, second]


def test_drain_gives_everything_back_once() -> None:
    sent, waiting = Request(), Request()
    flow = up_with(sent)
    flow.poll_send()
    flow.add(waiting)
    assert set(flow.drain()) == {sent, waiting}
    assert len(flow) == 0
    assert flow.drain() == []


class FlowAgainstItsModel(RuleBasedStateMachine):
    """A flow does what two plain lists would, and never gives a number out twice."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = NodeFlow[Request]()
        self.up = False
        self.waiting = deque[Request]()
        self.sent: list[Request] = []
        self.numbers: set[int] = set()

    @rule(
        size=st.sampled_from([0, 1, WINDOW_BYTES // 3, WINDOW_BYTES // 2, WINDOW_BYTES * 2]), repeatable=st.booleans()
    )
    def add(self, size: int, repeatable: bool) -> None:
        request = Request(size, repeatable)
        self.flow.add(request)
        self.waiting.append(request)

    @rule()
    def poll(self) -> None:
        request = self.flow.poll_send()
        on_their_way = sum(sent.expected_bytes for sent in self.sent)
        may_go = (
            self.up
            and self.waiting
            and (not self.sent or on_their_way + self.waiting[0].expected_bytes <= WINDOW_BYTES)
        )
        if not may_go:
            assert request is None
            return
        assert request is not None
        assert request is self.waiting.popleft()
        assert request.number not in self.numbers
        self.numbers.add(request.number)
        self.sent.append(request)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        assert self.flow.find(request.number) is request
        self.flow.handle_answered(request.number)
        assert self.flow.find(request.number) is None

    @precondition(lambda self: self.sent)
    @rule()
    def unsent(self) -> None:
        request = self.sent.pop()
        self.flow.handle_unsent(request)
        self.waiting.appendleft(request)

    @precondition(lambda self: self.sent or self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from([*self.sent, *self.waiting]))
        assert self.flow.cancel(request) is (request in self.sent)
        if request in self.sent:
            self.sent.remove(request)
        else:
            self.waiting.remove(request)

    @rule()
    def come_up(self) -> None:
        self.flow.handle_up()
        self.up = True

    @rule()
    def go_down(self) -> None:
        assert self.flow.handle_down() == [request for request in self.sent if not request.repeatable]
        self.waiting.extendleft(reversed([request for request in self.sent if request.repeatable]))
        self.sent.clear()
        self.up = False

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.flow) == len(self.sent) + len(self.waiting)
        assert self.flow.up is self.up


TestFlowAgainstItsModel = FlowAgainstItsModel.TestCase
TestFlowAgainstItsModel.settings = settings(max_examples=60, stateful_step_count=40)
