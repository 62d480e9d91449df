"""Requests of peers: queued, cancelled or parked, and their deadlines."""

from collections.abc import Sequence

from dawnchorus.wire.protocol.messages import Cancel, Commit, Fetch, Request, Scan, encode
from dawnchorus.wire.transport.counters import ServerCounters
from dawnchorus.wire.transport.request_queue import Call, RequestQueue, Shed

PEER, OTHER = b"peer", b"other"
CANCELLABLE = frozenset([3, 7])
"""The tags of Fetch and Scan."""


def queue_of(*requests: Request, drained: float = 0.0, peer: bytes = PEER) -> tuple[RequestQueue, ServerCounters]:
    counters = ServerCounters()
    queue = RequestQueue(counters, CANCELLABLE)
    for each in (PEER, OTHER):
        queue.add_peer(each)
    for request in requests:
        assert queue.put(peer, encode(request), drained) is None
    return queue, counters


def cancel(queue: RequestQueue, *numbers: int, peer: bytes = PEER) -> None:
    """Let a Cancel come, alone in its drain."""
    assert queue.put(peer, encode(Cancel(list(numbers))), 0.0) is None
    queue.handle_drained()


def fetch(number: int, budget_us: int = 1_000_000) -> Fetch:
    return Fetch(number, budget_us, 0, None, [])


def frames_left(queue: RequestQueue) -> Sequence[bytes]:
    frames: list[bytes] = []
    while (taken := queue.take(0.0)) is not None:
        frames.append(taken.frame)
    return frames


def test_request_cancelled_before_its_turn_is_dropped() -> None:
    scan, commit = Scan(3, 9, 0, None, "s", 0, 1, b"", 5), Commit(4, 9, 0, None, [])
    queue, counters = queue_of(fetch(1), fetch(2), scan, commit)
    cancel(queue, 1, 3, 4, 99)
    assert frames_left(queue) == [encode(fetch(2)), encode(commit)]  # a save is never dropped for it
    assert counters.cancelled == 2


def test_read_with_frames_to_come_can_be_cancelled() -> None:
    queue, counters = queue_of()
    reading = Call(PEER, encode(fetch(7)), 1.0)
    queue.put_back(reading)
    cancel(queue, 7)
    assert queue.take(0.0) is None
    assert counters.cancelled == 1


def test_one_peer_cannot_cancel_anothers_requests() -> None:
    queue, counters = queue_of(fetch(1), peer=OTHER)
    cancel(queue, 1)
    assert frames_left(queue) == [encode(fetch(1))]
    assert counters.cancelled == 0


def test_invalid_cancel_is_counted_as_malformed() -> None:
    queue, counters = queue_of(fetch(1))
    assert queue.put(PEER, b"\x92\x0e\xc1", 0.0) is None
    assert queue.put(PEER, encode(Cancel(list(range(1, 5_000)))), 0.0) is None  # far more than a router names
    queue.handle_drained()
    assert counters.malformed_frames == 2
    assert frames_left(queue) == [encode(fetch(1))]


def test_request_that_would_be_late_is_shed_immediately() -> None:
    queue, _counters = queue_of(fetch(1), fetch(2), fetch(3))
    queue.take(0.4)  # the first waited 0.4 s for its turn
    shed = queue.put(PEER, encode(fetch(4, budget_us=300_000)), 0.4)
    assert shed == Shed("the node is too far behind to answer in time", 0.2)
    assert queue.put(PEER, encode(fetch(5, budget_us=500_000)), 0.4) is None
    assert queue.put(OTHER, encode(fetch(6, budget_us=1_000)), 0.4) is None, "other peers have turns of their own"


def test_peer_with_all_work_cancelled_is_not_behind() -> None:
    queue, _counters = queue_of(fetch(1), fetch(2))
    queue.take(2.0)
    cancel(queue, 2)
    assert queue.put(PEER, encode(fetch(3, budget_us=1_000)), 3.0) is None


def test_a_peer_without_work_is_not_behind() -> None:
    queue, _counters = queue_of(fetch(1))
    queue.take(5.0)
    assert queue.put(PEER, encode(fetch(2, budget_us=1_000)), 5.0) is None


def test_full_queue_sheds_with_a_retry_time() -> None:
    queue, _counters = queue_of()
    shed = None
    for number in range(2_000):
        shed = queue.put(PEER, encode(fetch(number)), 0.0)
        if shed is not None:
            break
    assert shed is not None and shed.retry_after_s > 0


def test_budget_counts_from_sending_instead_of_draining() -> None:
    queue, _counters = queue_of()
    frame = encode(fetch(1))
    prompt, late = Call(PEER, frame, 10.0), Call(PEER, frame, 13.0)
    assert queue.deadline(prompt, 1_000_000, 500_000_000) == 11.0
    assert abs(queue.deadline(late, 1_000_000, 501_000_000) - 12.0) < 1e-6


def test_a_peer_that_is_forgotten_leaves_nothing() -> None:
    queue, _counters = queue_of(fetch(1), fetch(2))
    queue.take(0.5)
    assert queue.remove_peer(PEER) == 1
    assert PEER not in queue
    queue.add_peer(PEER)
    assert queue.put(PEER, encode(fetch(3, budget_us=1)), 0.5) is None


# --- parked requests ---


def parked(queue: RequestQueue) -> Call:
    """Take the next request and park it."""
    call = queue.take(0.0)
    assert call is not None
    queue.park(call)
    return call


def test_resumed_request_is_first_of_its_peer() -> None:
    queue, _counters = queue_of(fetch(1), fetch(2))
    call = parked(queue)
    assert queue.put(PEER, encode(fetch(3)), 0.0) is None
    assert queue.resume(call)
    assert frames_left(queue) == [encode(fetch(number)) for number in (1, 2, 3)]
    assert not queue.resume(call), "it is parked no longer"


def test_parked_requests_count_as_waiting() -> None:
    queue = RequestQueue(ServerCounters(), CANCELLABLE, length_max=3, bytes_max=1_000)
    queue.add_peer(PEER)
    assert [queue.put(PEER, encode(fetch(number)), 0.0) for number in range(3)] == [None] * 3
    calls = [parked(queue) for _ in range(3)]
    assert queue.put(PEER, encode(fetch(4)), 0.0) is not None
    assert queue.resume(calls[1])
    assert queue.put(PEER, encode(fetch(4)), 0.0) is not None, "it waits in the queue again"
    assert queue.take(0.0) is calls[1]
    assert queue.put(PEER, encode(fetch(4)), 0.0) is None
    assert queue.take(0.0) is not None
    assert queue.put(PEER, bytes(990), 0.0) is not None, "their bytes count, too"
    for call in (calls[0], calls[2]):
        assert queue.resume(call)
        assert queue.take(0.0) is call
    assert queue.put(PEER, bytes(990), 0.0) is None


def test_cancelled_parked_request_keeps_its_place() -> None:
    counters = ServerCounters()
    queue = RequestQueue(counters, CANCELLABLE, length_max=1)
    queue.add_peer(PEER)
    assert queue.put(PEER, encode(fetch(1)), 0.0) is None
    call = parked(queue)
    for _ in range(2):
        cancel(queue, 1)
        assert (call.abandoned, counters.cancelled) == (True, 1)
    assert queue.put(PEER, encode(fetch(2)), 0.0) is not None
    assert not queue.resume(call)
    assert queue.take(0.0) is None
    assert queue.put(PEER, encode(fetch(2)), 0.0) is None


def test_cancel_leaves_other_parked_requests_alone() -> None:
    commit = Commit(1, 9, 0, None, [])
    queue, counters = queue_of(commit, fetch(2))
    calls = [parked(queue), parked(queue)]
    cancel(queue, 1, 3)
    cancel(queue, 2, peer=OTHER)
    assert [call.abandoned for call in calls] == [False, False]
    assert counters.cancelled == 0


def test_parked_requests_of_forgotten_peer_are_abandoned() -> None:
    queue, _counters = queue_of(fetch(1), fetch(2), fetch(3))
    calls = [parked(queue), parked(queue)]
    cancel(queue, 1)
    assert queue.remove_peer(PEER) == 2, "one waited, one was parked, and one was not wanted any more"
    queue.add_peer(PEER)
    assert all(call.abandoned for call in calls)
    assert not any([queue.resume(call) for call in calls])
    assert queue.take(0.0) is None


def test_request_parked_after_its_peer_is_abandoned() -> None:
    queue, _counters = queue_of(fetch(1))
    call = queue.take(0.0)
    assert call is not None
    queue.remove_peer(PEER)
    queue.park(call)
    assert call.abandoned
    assert not queue.resume(call)


def test_stopping_abandons_every_parked_request() -> None:
    queue, _counters = queue_of(fetch(1))
    call = parked(queue)
    queue.abandon_parked()
    assert call.abandoned
    assert not queue.resume(call)
