"""The fair queue: every peer has its turn, in order, and no peer's queue grows without bound."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dawnchorus.wire.transport.fair_queue import PEER_QUEUE_BYTES_MAX, PEER_QUEUE_LENGTH_MAX, FairQueue


def queue_of(*peers: bytes) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for peer in peers:
        queue.add_peer(peer)
    return queue


def taken(queue: FairQueue[str]) -> list[str]:
    """Take everything that is left, in the order of service."""
    found: list[str] = []
    while (piece := queue.take()) is not None:
        found.append(piece[1])
    return found


def test_work_comes_out_unchanged() -> None:
    queue = queue_of(b"a")
    assert queue.put(b"a", "work", 7)
    assert queue.take() == (b"a", "work", 7)
    assert queue.take() is None


def test_storm_does_not_delay_another_peers_piece() -> None:
    queue = queue_of(b"storm", b"single")
    for number in range(1_000):
        queue.put(b"storm", f"storm {number}", 1)
    queue.put(b"single", "single", 1)
    assert taken(queue)[:3] == ["storm 0", "single", "storm 1"]


def test_peers_take_turns_each_in_its_order() -> None:
    queue = queue_of(b"a", b"b", b"c")
    for number in range(3):
        for peer in (b"a", b"b", b"c"):
            queue.put(peer, f"{peer.decode()}{number}", 1)
    assert taken(queue) == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_unfinished_work_is_first_of_its_peers_turn() -> None:
    queue = queue_of(b"a", b"b")
    queue.put(b"a", "a0", 5)
    queue.put(b"a", "a1", 5)
    queue.put(b"b", "b0", 5)
    assert queue.take() == (b"a", "a0", 5)
    queue.put_back(b"a", "rest of a0", 5)
    assert taken(queue) == ["b0", "rest of a0", "a1"]


def test_work_put_back_alone_is_found_again() -> None:
    queue = queue_of(b"a")
    queue.put(b"a", "a0", 5)
    queue.take()
    queue.put_back(b"a", "rest", 5)
    assert taken(queue) == ["rest"]


def test_blocked_peer_waits_alone() -> None:
    queue = queue_of(b"a", b"b")
    for number in range(2):
        queue.put(b"a", f"a{number}", 1)
        queue.put(b"b", f"b{number}", 1)
    queue.block(b"a")
    assert queue.put(b"a", "a2", 1)
    assert taken(queue) == ["b0", "b1"]
    queue.unblock(b"a")
    queue.unblock(b"a")
    assert taken(queue) == ["a0", "a1", "a2"]


def test_peer_unblocked_within_turn_keeps_one_per_round() -> None:
    # As a node does that sends a frame, finds the peer's pipe full, and can continue a millisecond later.
    queue = queue_of(b"a", b"b")
    for number in range(4):
        queue.put(b"a", f"a{number}", 1)
        queue.put(b"b", f"b{number}", 1)
    for _ in range(3):
        queue.block(b"a")
        queue.unblock(b"a")
    assert taken(queue) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


def test_returning_peer_has_one_turn_a_round() -> None:
    queue = queue_of(b"a", b"b")
    queue.put(b"a", "old", 1)
    assert queue.remove_peer(b"a") == 1
    queue.add_peer(b"a")
    for number in range(3):
        queue.put(b"a", f"a{number}", 1)
        queue.put(b"b", f"b{number}", 1)
    assert taken(queue) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_queue_is_bounded_in_pieces() -> None:
    queue = queue_of(b"a", b"b")
    for number in range(PEER_QUEUE_LENGTH_MAX):
        assert queue.put(b"a", f"a{number}", 1)
    assert not queue.put(b"a", "one too many", 1)
    assert queue.put(b"b", "b0", 1), "another's queue has room"
    queue.take()
    assert queue.put(b"a", "last", 1)
    found = taken(queue)
    assert "one too many" not in found
    assert found[-1] == "last"


def test_a_queue_is_bounded_in_bytes() -> None:
    queue = queue_of(b"a")
    assert queue.put(b"a", "half", PEER_QUEUE_BYTES_MAX // 2)
    assert queue.put(b"a", "other half", PEER_QUEUE_BYTES_MAX // 2)
    assert not queue.put(b"a", "too much", 1)
    queue.take()
    assert queue.put(b"a", "again", PEER_QUEUE_BYTES_MAX // 2)
    assert not queue.put(b"a", "too much", 1)


def test_work_put_back_is_never_rejected() -> None:
    queue = queue_of(b"a")
    for number in range(PEER_QUEUE_LENGTH_MAX):
        queue.put(b"a", f"a{number}", PEER_QUEUE_BYTES_MAX // PEER_QUEUE_LENGTH_MAX)
    queue.take()
    queue.put(b"a", "in its place", PEER_QUEUE_BYTES_MAX // PEER_QUEUE_LENGTH_MAX)
    queue.put_back(b"a", "rest", PEER_QUEUE_BYTES_MAX // PEER_QUEUE_LENGTH_MAX)
    assert not queue.put(b"a", "too much", 1)
    assert taken(queue)[0] == "rest"


def test_work_held_elsewhere_counts_until_released() -> None:
    queue: FairQueue[str] = FairQueue(length_max=2, bytes_max=10)
    queue.add_peer(b"a")
    for number in range(2):
        assert queue.put(b"a", f"a{number}", 5)
        assert queue.take() == (b"a", f"a{number}", 5)
        queue.hold(b"a", 5)
    assert not queue.put(b"a", "too many", 0)
    queue.release(b"a", 5)
    assert not queue.put(b"a", "too much", 6)
    assert queue.put(b"a", "a2", 5)
    assert queue.discard(b"a", lambda _: True) == 1
    assert queue.put(b"a", "a3", 5), "what was dropped counts no more, what is held does"
    assert not queue.put(b"a", "too many", 0)


def test_work_of_departed_peer_is_dropped() -> None:
    queue = queue_of(b"a", b"b")
    queue.put(b"a", "a0", 1)
    queue.put(b"a", "a1", 1)
    queue.put(b"b", "b0", 1)
    assert queue.remove_peer(b"a") == 2
    assert queue.remove_peer(b"a") == 0
    assert b"a" not in queue
    assert len(queue) == 1
    queue.put_back(b"a", "rest", 1)
    queue.block(b"a")
    queue.unblock(b"a")
    assert taken(queue) == ["b0"]
    with pytest.raises(KeyError):
        queue.put(b"a", "late", 1)


def test_peer_repeating_hello_keeps_its_work() -> None:
    queue = queue_of(b"a")
    queue.put(b"a", "a0", 1)
    queue.add_peer(b"a")
    assert taken(queue) == ["a0"]


PEERS = [b"a", b"b"]
peers = st.sampled_from(PEERS)


class FairQueueMachine(RuleBasedStateMachine):
    """Against one plain queue a peer, and a count of how often others were served while a peer waited."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.pieces: dict[bytes, deque[int]] = {}
        self.blocked: set[bytes] = set()
        self.served_while_waiting: dict[bytes, list[bytes]] = {}
        self.numbers = 0
        for peer in PEERS:
            self.add(peer)

    def ready(self) -> set[bytes]:
        return {peer for peer, pieces in self.pieces.items() if pieces and peer not in self.blocked}

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def add(self, peer: bytes) -> None:
        self.queue.add_peer(peer)
        self.pieces.setdefault(peer, deque())

    @rule(peer=st.sampled_from([*PEERS, b"nobody"]))
    def leave_and_come_again(self, peer: bytes) -> None:
        assert self.queue.remove_peer(peer) == len(self.pieces.pop(peer, ()))
        self.blocked.discard(peer)
        if peer in PEERS:
            self.add(peer)

    @rule(peer=peers, count=st.integers(1, 6))
    def put(self, peer: bytes, count: int) -> None:
        for _ in range(count if peer in self.pieces else 0):
            number = self.number()
            assert self.queue.put(peer, number, 1)
            self.pieces[peer].append(number)

    @rule(peer=peers)
    def block(self, peer: bytes) -> None:
        self.queue.block(peer)
        if peer in self.pieces:
            self.blocked.add(peer)

    @rule(peer=peers)
    def unblock(self, peer: bytes) -> None:
        self.queue.unblock(peer)
        self.blocked.discard(peer)

    @rule(outcomes=st.lists(st.sampled_from(["done", "done", "done", "rest", "blocked"]), min_size=1, max_size=6))
    def take(self, outcomes: list[str]) -> None:
        for outcome in outcomes:
            ready = self.ready()
            piece = self.queue.take()
            if piece is None:
                assert not ready, "work that nobody is served"
                return
            peer, number, _ = piece
            assert peer in ready
            assert self.pieces[peer].popleft() == number, "out of order"
            for waiting in ready - {peer}:
                served = self.served_while_waiting.setdefault(waiting, [])
                served.append(peer)
                assert served.count(peer) == 1, f"{peer!r} is served twice while {waiting!r} waits"
            self.served_while_waiting.pop(peer, None)
            if outcome != "done":
                self.queue.put_back(peer, number, 1)
                self.pieces[peer].appendleft(number)
            if outcome == "blocked":
                self.block(peer)

    @invariant()
    def knows_its_peers(self) -> None:
        assert len(self.queue) == len(self.pieces)
        assert all((peer in self.queue) == (peer in self.pieces) for peer in PEERS)
        # A peer that no longer waits begins to count anew.
        ready = self.ready()
        self.served_while_waiting = {peer: s for peer, s in self.served_while_waiting.items() if peer in ready}


TestFairQueueMachine = FairQueueMachine.TestCase
TestFairQueueMachine.settings = settings(max_examples=100, stateful_step_count=50)
