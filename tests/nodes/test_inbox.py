"""What peers asked for: what may wait, what is cancelled, and when its deadline is."""

from collections.abc import Sequence

from dawnchorus.nodes.inbox import Inbox, Reading, Received, Shed
from dawnchorus.nodes.read_path import Read
from dawnchorus.wire.protocol.messages import Cancel, Commit, Fetch, Request, Scan, encode
from dawnchorus.wire.transport.counters import Counters

PEER, OTHER = b"peer", b"other"


def inbox_of(*requests: Request, drained: float = 0.0, peer: bytes = PEER) -> tuple[Inbox, Counters]:
    counters = Counters()
    inbox = Inbox(counters)
    for each in (PEER, OTHER):
        inbox.add_peer(each)
    for request in requests:
        assert inbox.put(peer, encode(request), drained) is None
    return inbox, counters


def cancel(inbox: Inbox, *numbers: int, peer: bytes = PEER) -> None:
    """Let a Cancel come, alone in its drain."""
    assert inbox.put(peer, encode(Cancel(list(numbers))), 0.0) is None
    inbox.handle_drained()


def fetch(number: int, budget_us: int = 1_000_000) -> Fetch:
    return Fetch(number, budget_us, [])


def frames_left(inbox: Inbox) -> Sequence[bytes]:
    frames: list[bytes] = []
    while (taken := inbox.take(0.0)) is not None:
        frames.append(taken[1].frame)
    return frames


def test_what_is_cancelled_before_its_turn_is_dropped_and_counted() -> None:
    scan, commit = Scan(3, 9, "s", 0, 1, b"", 5), Commit(4, 9, [])
    inbox, counters = inbox_of(fetch(1), fetch(2), scan, commit)
    cancel(inbox, 1, 3, 4, 99)
    assert frames_left(inbox) == [encode(fetch(2)), encode(commit)]  # a save is never dropped for it
    assert counters.cancelled == 2


def test_a_read_with_frames_to_come_can_be_cancelled() -> None:
    inbox, counters = inbox_of()
    reading = Reading(encode(fetch(7)), Read(fetch(7), {}), 1.0)
    inbox.put_back(PEER, reading, 10)
    cancel(inbox, 7)
    assert inbox.take(0.0) is None
    assert counters.cancelled == 1


def test_one_peer_cannot_cancel_anothers_requests() -> None:
    inbox, counters = inbox_of(fetch(1), peer=OTHER)
    cancel(inbox, 1)
    assert frames_left(inbox) == [encode(fetch(1))]
    assert counters.cancelled == 0


def test_a_cancel_that_is_none_is_counted_as_garbage() -> None:
    inbox, counters = inbox_of(fetch(1))
    assert inbox.put(PEER, b"\x92\x0e\xc1", 0.0) is None
    assert inbox.put(PEER, encode(Cancel(list(range(1, 5_000)))), 0.0) is None  # far more than a router names
    inbox.handle_drained()
    assert counters.garbage == 2
    assert frames_left(inbox) == [encode(fetch(1))]


def test_a_peer_is_told_at_once_what_would_come_too_late() -> None:
    inbox, _counters = inbox_of(fetch(1), fetch(2), fetch(3))
    inbox.take(0.4)  # the first waited 0.4 s for its turn
    shed = inbox.put(PEER, encode(fetch(4, budget_us=300_000)), 0.4)
    assert shed == Shed("the node is too far behind to answer in time", 0.2)
    assert inbox.put(PEER, encode(fetch(5, budget_us=500_000)), 0.4) is None
    assert inbox.put(OTHER, encode(fetch(6, budget_us=1_000)), 0.4) is None, "other peers have turns of their own"


def test_a_peer_whose_work_is_all_cancelled_is_not_behind() -> None:
    inbox, _counters = inbox_of(fetch(1), fetch(2))
    inbox.take(2.0)
    cancel(inbox, 2)
    assert inbox.put(PEER, encode(fetch(3, budget_us=1_000)), 3.0) is None


def test_a_peer_without_work_is_not_behind() -> None:
    inbox, _counters = inbox_of(fetch(1))
    inbox.take(5.0)
    assert inbox.put(PEER, encode(fetch(2, budget_us=1_000)), 5.0) is None


def test_a_full_queue_is_told_with_a_time_to_stay_away() -> None:
    inbox, _counters = inbox_of()
    shed = None
    for number in range(2_000):
        shed = inbox.put(PEER, encode(fetch(number)), 0.0)
        if shed is not None:
            break
    assert shed is not None and shed.retry_after_s > 0


def test_the_budget_counts_from_when_a_request_was_sent_not_from_when_it_was_drained() -> None:
    inbox, _counters = inbox_of()
    frame = encode(fetch(1))
    prompt, late = Received(frame, 10.0), Received(frame, 13.0)
    assert inbox.deadline(PEER, prompt, 1_000_000, 500_000_000) == 11.0
    assert abs(inbox.deadline(PEER, late, 1_000_000, 501_000_000) - 12.0) < 1e-6


def test_a_peer_that_is_forgotten_leaves_nothing() -> None:
    inbox, _counters = inbox_of(fetch(1), fetch(2))
    inbox.take(0.5)
    assert inbox.remove_peer(PEER) == 1
    assert PEER not in inbox
    inbox.add_peer(PEER)
    assert inbox.put(PEER, encode(fetch(3, budget_us=1)), 0.5) is None
