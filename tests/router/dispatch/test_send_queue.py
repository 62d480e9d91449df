"""Waiting requests: turns between callers, priorities, and how long newcomers wait."""

import gc
import weakref
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.router.dispatch.send_queue import Priority, WaitingQueue


@dataclass(eq=False)
class Request:
    caller: object = "one"
    priority: Priority = Priority.URGENT
    waits: bool = False
    queued_at: float = 0.0
    number: int = 0


def take(queue: WaitingQueue[Request]) -> Request | None:
    request = queue.next()
    if request is not None:
        assert request.waits
        queue.pop(request)
        assert not request.waits
    return request


def take_all(queue: WaitingQueue[Request]) -> list[Request]:
    taken: list[Request] = []
    while (request := take(queue)) is not None:
        taken.append(request)
    assert queue.length == 0
    return taken


def filled(*requests: Request) -> WaitingQueue[Request]:
    queue = WaitingQueue[Request]()
    for number, request in enumerate(requests):
        request.number = number
        queue.add(request, float(number))
    return queue


def test_one_callers_requests_go_in_order() -> None:
    requests = [Request() for _ in range(5)]
    assert take_all(filled(*requests)) == requests


def test_single_wake_takes_turns_with_a_storm() -> None:
    storm = [Request("storm") for _ in range(100)]
    single, other = Request("single"), Request("other")
    taken = take_all(filled(*storm, single, other))
    assert taken[:4] == [storm[0], single, other, storm[1]]
    assert [request for request in taken if request.caller == "storm"] == storm


def test_background_requests_go_last() -> None:
    listing, wake = Request("a", Priority.BACKGROUND), Request("b")
    assert take_all(filled(listing, wake)) == [wake, listing]


def test_repeated_request_goes_first() -> None:
    waiting, again = Request(), Request()
    queue = filled(waiting)
    queue.add_first(again, 1.0)
    assert take_all(queue) == [again, waiting]


def test_removed_request_is_passed_over() -> None:
    first, second, third = Request(), Request(), Request("two")
    queue = filled(first, second, third)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert queue.length == 2
    assert take_all(queue) == [second, third]


def test_longest_wait_counts_callers_before_first_turn() -> None:
    queue = filled(Request("storm"), Request("storm"), Request("single"))
    assert queue.longest_wait(10.0, Priority.URGENT) == 10.0
    take(queue)  # the storm has had its first turn: its second request does not count for newcomers
    assert queue.longest_wait(10.0, Priority.URGENT) == 8.0
    take(queue)
    assert queue.longest_wait(10.0, Priority.URGENT) == 0.0
    assert queue.length == 1


def test_waiting_listings_do_not_count_for_wakes() -> None:
    queue = filled(Request(priority=Priority.BACKGROUND))
    assert queue.longest_wait(10.0, Priority.URGENT) == 0.0
    assert queue.longest_wait(10.0, Priority.BACKGROUND) == 10.0


def test_an_empty_queue_keeps_nothing_alive() -> None:
    requests = [Request(number % 3, Priority(number % 2)) for number in range(20)]
    queue = filled(*requests)
    assert all([queue.remove(request) for request in requests[::2]])
    take_all(queue)
    gone = [weakref.ref(request) for request in requests]
    requests.clear()
    gc.collect()
    assert not any(reference() for reference in gone)


def test_drain_gives_everything_back_once() -> None:
    requests = [Request(number) for number in range(4)]
    queue = filled(*requests)
    queue.remove(requests[2])
    again = Request()
    queue.add_first(again, 0.0)
    assert set(map(id, queue.drain())) == {id(request) for request in [requests[0], requests[1], requests[3], again]}
    assert queue.length == 0
    assert queue.drain() == []


@given(st.lists(st.tuples(st.sampled_from(["add", "first", "take", "remove"]), st.integers(0, 3), st.booleans())))
def test_nothing_is_lost_or_given_out_twice(steps: list[tuple[str, int, bool]]) -> None:
    queue, waiting, out = WaitingQueue[Request](), list[Request](), list[Request]()
    for now, (step, caller, background) in enumerate(steps):
        if step in ("add", "first"):
            request = Request(caller, Priority(background))
            (queue.add if step == "add" else queue.add_first)(request, float(now))
            waiting.append(request)
        elif step == "take":
            taken = take(queue)
            assert (taken is None) is (not waiting)
            if taken is not None:
                waiting.remove(taken)
                out.append(taken)
        elif waiting:
            assert queue.remove(waiting.pop(caller % len(waiting)))
        assert queue.length == len(waiting)
    left = take_all(queue)
    assert set(map(id, left)) == set(map(id, waiting))
    assert len(set(map(id, out))) == len(out)
