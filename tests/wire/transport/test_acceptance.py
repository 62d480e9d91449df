"""Acceptance of routers: as long as a node has descriptors to spare, and again once it has."""

import heapq
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dawnchorus.perf.harness.topologies import free_ports
from dawnchorus.wire.descriptors import Reserve
from dawnchorus.wire.errors import DataDirectoryError
from dawnchorus.wire.transport.acceptance import IPC_DESCRIPTORS_MIN, RESERVE, Acceptance, Doors
from dawnchorus.wire.transport.listener import Listener
from dawnchorus.wire.transport.sockets import SocketOwner

LIMIT = 1_024


KEPT = RESERVE + 64
"""Descriptors that newcomers do not get."""


class Descriptors(Reserve):
    """A process's descriptors, given out lowest first; those that it holds are numbered too."""

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        self.limit = limit
        self.taken: set[int] = set()
        self.held: set[int] = set()
        self.free = list(range(limit))
        self.shut = False
        self.clients = 0
        self.acceptance = Acceptance(
            self._note,
            limit=limit,
            free=self.lowest,
            count=lambda: self.limit - len(self.free),
            reserve=self,
        )

    def _note(self, shut: bool) -> None:
        assert shut is not self.shut, "the kernel is notified of changes only"
        self.shut = shut

    def lowest(self) -> int:
        return self.free[0] if self.free else self.limit

    def __len__(self) -> int:
        return len(self.held)

    def take(self, count: int) -> None:
        while len(self.held) < count and self.free:
            self.held.add(heapq.heappop(self.free))

    def release(self) -> None:
        assert self.shut, "first nobody is let in"
        while self.held:
            heapq.heappush(self.free, self.held.pop())

    def give_back(self, number: int) -> None:
        self.taken.discard(number)
        heapq.heappush(self.free, number)

    def accept(self, count: int) -> int:
        """Let the kernel and libzmq accept so many, as far as there are descriptors; return how many."""
        count = min(count, len(self.free))
        for _ in range(count):
            self.taken.add(heapq.heappop(self.free))
        return count

    def greet(self, count: int) -> int:
        """Let so many of the accepted say Hello; return how many may stay, the others are disconnected."""
        stayed = 0
        for _ in range(count):
            if self.acceptance.admits(self.clients):
                self.clients += 1
                stayed += 1
            else:
                self.give_back(max(self.taken))
        return stayed


def test_node_is_open_until_margin_is_reached() -> None:
    made = Descriptors()
    stayed = sum(made.greet(made.accept(1)) for _ in range(LIMIT))
    assert stayed == LIMIT - KEPT
    assert made.acceptance.doors is Doors.FULL
    assert not made.shut, "newcomers are given the reason"
    assert "832 of its 1,024 descriptors" in made.acceptance.why()


def test_burst_rejects_only_excess_and_spares_held_descriptors() -> None:
    made = Descriptors()
    came = made.accept(5_000)
    assert came == LIMIT - RESERVE
    assert made.greet(came) == LIMIT - KEPT
    made.acceptance.handle_tick(made.clients)
    assert made.acceptance.doors is Doors.FULL
    assert len(made.free) == 64
    assert len(made.held) == RESERVE


def test_silent_newcomer_is_counted_at_next_tick() -> None:
    made = Descriptors()
    made.accept(LIMIT)
    made.acceptance.handle_tick(made.clients)
    assert made.shut
    assert made.acceptance.used == LIMIT - RESERVE


def test_listener_reopens_only_once_enough_have_left() -> None:
    made = Descriptors()
    made.accept(LIMIT)
    made.acceptance.handle_tick(made.clients)
    doors: list[Doors] = []
    while made.taken:
        made.give_back(max(made.taken))
        made.acceptance.handle_tick(made.clients)
        if not doors or doors[-1] is not made.acceptance.doors:
            doors.append(made.acceptance.doors)
        if made.acceptance.doors is Doors.OPEN:
            assert len(made.held) == RESERVE
            assert made.acceptance.used < LIMIT - KEPT - 31
    assert doors == [Doors.SHUT, Doors.FULL, Doors.OPEN]
    assert not made.shut


def test_router_gets_ipc_only_with_ample_room() -> None:
    # libzmq ends a process that has no descriptor for a connection over ipc.
    assert not Descriptors(IPC_DESCRIPTORS_MIN - 1).acceptance.offers_ipc()
    made = Descriptors(IPC_DESCRIPTORS_MIN)
    assert made.acceptance.offers_ipc()
    made.accept(IPC_DESCRIPTORS_MIN // 2)
    assert not made.acceptance.offers_ipc()
    assert made.acceptance.admits(0)


@settings(max_examples=60)
@given(st.integers(16, 120), st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=15))
def test_held_descriptors_stay_held_under_any_churn(limit: int, steps: list[tuple[int, bool]]) -> None:
    made = Descriptors(limit)
    to_give = limit - limit // 8 - limit // 16
    for count, leaving in steps:
        if leaving:
            for number in sorted(made.taken)[:count]:
                made.give_back(number)  # holes below
                made.clients -= 1
        else:
            made.greet(made.accept(count))
        assert made.clients == len(made.taken) <= to_give
        made.acceptance.handle_tick(made.clients)
        assert not made.shut
        assert len(made.held) == limit // 8
        if made.clients < to_give - limit // 16:
            assert made.acceptance.doors is Doors.OPEN


def test_shut_listener_accepts_none_and_keeps_connections() -> None:
    port = free_ports(1)[0]
    with SocketOwner() as owner, SocketOwner() as other:
        replies, monitor = owner.monitored_router()
        listener = Listener(replies, monitor, f"tcp://127.0.0.1:{port}")
        requests = other.dealer(f"tcp://127.0.0.1:{port}")
        requests.send(b"before")
        identity, _ = replies.recv_multipart()
        for _ in range(2):
            assert listener.shut(True)
            with pytest.raises(TimeoutError):
                socket.create_connection(("127.0.0.1", port), timeout=0.2)
            requests.send(b"meanwhile")
            assert replies.recv_multipart()[1] == b"meanwhile"
            replies.send_multipart([identity, b"answer"])
            assert requests.recv() == b"answer"
            assert listener.shut(False)
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(DataDirectoryError, match="Address already in use"):
            Listener(*owner.monitored_router(), f"tcp://127.0.0.1:{port}")
