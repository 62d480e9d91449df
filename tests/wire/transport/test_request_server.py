"""The request server alone: in memory, with a loop and a clock that the test drives, and handlers of its own."""

import heapq
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable

import pytest

from dawnchorus.wire.descriptors import Reserve
from dawnchorus.wire.errors import InvalidRequestError
from dawnchorus.wire.protocol.messages import (
    PING,
    PONG,
    PROTOCOL,
    Cancel,
    Commit,
    CommitReply,
    Fault,
    FaultCode,
    Fetch,
    Hello,
    Message,
    Scan,
    ScanReply,
    Welcome,
    decode_reply,
    encode,
)
from dawnchorus.wire.transport.acceptance import Acceptance
from dawnchorus.wire.transport.channel import Sent
from dawnchorus.wire.transport.counters import ServerCounters
from dawnchorus.wire.transport.handlers import Answer, Handler, Handlers
from dawnchorus.wire.transport.liveness import LIVENESS_TICK_S, SILENT_TICKS
from dawnchorus.wire.transport.request_queue import Call
from dawnchorus.wire.transport.request_server import RequestServer

HELLO = encode(Hello(PROTOCOL, "", b"", ""))
BUDGET_US = 1_000_000


class Timer:
    """A callback of the loop."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """An event loop whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object], /) -> Timer:
        return self.call_later(0.0, callback)

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (self.now + delay, next(self._numbers), timer))
        return timer

    def run(self, seconds: float = 0.0) -> None:
        """Let time pass, and call what is due."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            if timer.callback is not None:
                timer.callback()
        self.now = end


class Pipes:
    """A channel in memory: each peer's pipe takes so many frames, or is gone."""

    def __init__(self) -> None:
        self.room: dict[bytes, int] = defaultdict(lambda: 1_000)
        self.gone: set[bytes] = set()
        self.sent: dict[bytes, list[bytes]] = defaultdict(list)
        self.in_order: list[bytes] = []
        self.handle_messages: Callable[[list[list[bytes]]], None] = lambda _: None
        self.handle_ended: Callable[[], None] = lambda: None
        self.closed = False

    def open(self, handle_messages: Callable[[list[list[bytes]]], None], handle_ended: Callable[[], None]) -> "Pipes":
        self.handle_messages = handle_messages
        self.handle_ended = handle_ended
        return self

    def send_to(self, identity: bytes, frame: bytes) -> Sent:
        if identity in self.gone:
            return Sent.GONE
        if self.room[identity] == 0:
            return Sent.FULL
        self.room[identity] -= 1
        self.sent[identity].append(frame)
        self.in_order.append(frame)
        return Sent.OK

    def poll(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Greeter:
    """Welcomes routers of any cluster but one."""

    def rejection(self, hello: Hello) -> Fault | None:
        return Fault(0, FaultCode.WRONG_CLUSTER, "not here") if hello.cluster == "another" else None

    def welcome(self, *, ipc: bool) -> Welcome:
        return Welcome("server", "", b"", b"", "ipc://x" if ipc else "", 1)


class Script:
    """Frames that a test prepares; None parks, an error is raised."""

    def __init__(self, *frames: str | Exception | None, taking: Callable[[], object] = int) -> None:
        self._frames = list(frames)
        self._taking = taking
        self.calls: list[Call] = []

    def next_frame(self, call: Call) -> tuple[bytes, bool] | None:
        self.calls.append(call)
        self._taking()
        frame = self._frames.pop(0)
        if isinstance(frame, Exception):
            raise frame
        return None if frame is None else (frame.encode(), not self._frames)


class Served:
    """A server in memory. A Scan gets what `scans` says, by the request's number, or an empty answer."""

    def __init__(self, *, peers_max: int = 10) -> None:
        self.loop = Loop()
        self.pipes = Pipes()
        self.counters = ServerCounters()
        self.scans: dict[int, Script] = {}
        self.commits: list[tuple[Call, Commit]] = []
        acceptance = Acceptance(lambda _: None, limit=1_024, free=lambda: 10, count=lambda: 10, reserve=NoReserve())
        handlers: Handlers = {Scan: Handler(self._scan), Commit: Handler(self._commit, always=True)}
        self.server = RequestServer(
            self.loop,
            handlers,
            Greeter(),
            acceptance,
            self.counters,
            peers_max=peers_max,
            monotonic=self.loop.monotonic,
        )
        self.server.start(self.pipes.open)

    def _scan(self, _call: Call, scan: Scan) -> Answer:
        if scan.store == "bug":
            raise RuntimeError("a bug")
        if scan.store == "invalid":
            raise InvalidRequestError("no such thing")
        return self.scans.get(scan.request) or ScanReply(scan.request, 0, [], True)

    def _commit(self, call: Call, commit: Commit) -> Answer:
        self.commits.append((call, commit))
        return None

    def welcome(self, *peers: bytes) -> None:
        for peer in peers:
            self.come(peer, HELLO)
            assert isinstance(self.answer(peer), Welcome)

    def come(self, peer: bytes, *frames: bytes | Message) -> None:
        """Let frames of one peer come in one drain."""
        made = [frame if isinstance(frame, bytes) else encode(frame) for frame in frames]
        self.pipes.handle_messages([[peer, frame] for frame in made])

    def answer(self, peer: bytes) -> object:
        """Take the one message that was sent to a peer."""
        [frame] = self.raw(peer)
        return decode_reply(frame)

    def raw(self, peer: bytes) -> list[bytes]:
        """Take the frames that were sent to a peer."""
        return self.pipes.sent.pop(peer, [])

    def park(self, peer: bytes, number: int, *frames: str | Exception) -> Call:
        """Let a request come that is parked, and then answered by these frames."""
        script = self.scans[number] = Script(None, *frames)
        self.come(peer, scan(number))
        return script.calls[0]


class NoReserve(Reserve):
    """Holds nothing, unlike a server of a real process."""

    def take(self, count: int) -> None:
        pass


def scan(number: int, *, budget_us: int = BUDGET_US, store: str = "") -> Scan:
    return Scan(number, budget_us, 0, None, store, 0, 1, b"", 1)


@pytest.fixture
def served() -> Served:
    """A server that has welcomed two peers."""
    made = Served()
    made.welcome(b"a", b"b")
    return made


# --- greeting ---


def test_first_request_without_hello_is_rejected() -> None:
    served = Served()
    served.come(b"a", scan(5))
    assert served.answer(b"a") == Fault(5, FaultCode.NO_HELLO, "a connection begins with Hello")
    served.come(b"a", Hello(PROTOCOL, "another", b"", ""))
    assert served.answer(b"a") == Fault(0, FaultCode.WRONG_CLUSTER, "not here")
    served.come(b"a", Cancel([1]), PING)
    assert served.answer(b"a") == Fault(0, FaultCode.NO_HELLO, "a connection begins with Hello")
    served.welcome(b"a")
    served.come(b"a", scan(6))
    assert served.answer(b"a") == ScanReply(6, 0, [], True)
    assert (served.counters.hellos, served.counters.faults) == (2, 3)


def test_peers_beyond_limit_are_rejected_until_one_leaves() -> None:
    served = Served(peers_max=2)
    served.welcome(b"a", b"b")
    served.come(b"c", HELLO)
    fault = served.answer(b"c")
    assert isinstance(fault, Fault)
    assert (fault.code, fault.retry_after_us) == (FaultCode.OVERLOADED, 2_000_000)
    for _ in range(SILENT_TICKS + 2):
        served.come(b"a", PING)
        served.loop.run(LIVENESS_TICK_S)
    served.welcome(b"c")  # instead of b, which has said nothing
    assert served.counters.turned_away == 1


def test_ping_is_answered_before_what_waits(served: Served) -> None:
    served.come(b"a", scan(1), PING)
    assert served.raw(b"a") == [PONG, encode(ScanReply(1, 0, [], True))]


def test_first_request_on_new_connection_abandons_the_earlier(served: Served) -> None:
    for peer in (b"early", b"later"):
        served.come(peer, Hello(PROTOCOL, "", b"12345678", ""))
        assert isinstance(served.answer(peer), Welcome)
    call = served.park(b"early", 1, "never sent")
    served.come(b"later", scan(2))
    assert served.answer(b"later") == ScanReply(2, 0, [], True)
    assert call.abandoned
    served.server.resume(call)
    served.loop.run(0.1)
    assert served.raw(b"early") == []


# --- answers ---


def test_request_of_no_handler_is_rejected(served: Served) -> None:
    served.come(b"a", Fetch(3, BUDGET_US, 0, None, []))
    assert served.answer(b"a") == Fault(3, FaultCode.BAD_REQUEST, "Fetch is not served here")


def test_handler_that_raises_is_answered_and_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.come(b"a", scan(1, store="invalid"))
    assert served.answer(b"a") == Fault(1, FaultCode.BAD_REQUEST, "no such thing")
    with caplog.at_level(logging.ERROR):
        served.come(b"a", scan(2, store="bug"))
    assert served.answer(b"a") == Fault(2, FaultCode.INTERNAL, "see the node's log")
    assert [record.message for record in caplog.records] == ["request fails"]
    assert (served.counters.internal_errors, served.counters.faults) == (1, 2)


def test_malformed_frames_are_counted_and_answered_by_number(served: Served) -> None:
    served.come(b"a", b"\xc1", encode(scan(7))[:-1] + b"\xc1")
    served.pipes.handle_messages([[b"a", PING, PING], [b"a"]])
    assert served.raw(b"a") == []
    served.come(b"a", b"\x94\x07\x09\x01\xa1x")
    fault = served.answer(b"a")
    assert isinstance(fault, Fault)
    assert (fault.request, fault.code) == (9, FaultCode.BAD_REQUEST)
    assert served.counters.malformed_frames == 5


def test_frames_of_answer_take_turns_with_other_peers(served: Served) -> None:
    served.scans = {1: Script("a1", "a2", "a3"), 2: Script("never before a3"), 3: Script("b")}
    served.pipes.in_order.clear()
    served.pipes.handle_messages([[b"a", encode(scan(1))], [b"a", encode(scan(2))], [b"b", encode(scan(3))]])
    assert served.pipes.in_order == [b"a1", b"b", b"a2", b"a3", b"never before a3"]


def test_handler_answers_later_by_reply(served: Served) -> None:
    served.come(b"a", Commit(4, BUDGET_US, 0, None, []))
    [(call, commit)] = served.commits
    assert (call.peer, call.number, commit.request) == (b"a", 4, 4)
    served.server.reply(call.peer, CommitReply(4, []))
    assert served.answer(b"a") == CommitReply(4, [])


def test_quiet_peer_is_forgotten_after_its_connection_ended(served: Served) -> None:
    for peer in (b"a", b"b"):
        served.come(peer, HELLO)
    served.loop.run(3 * LIVENESS_TICK_S)
    served.pipes.gone.add(b"a")
    served.pipes.handle_ended()
    served.pipes.handle_ended()
    assert b"a" in served.server.peers
    served.loop.run(0.2)
    assert b"a" not in served.server.peers
    assert b"b" in served.server.peers


# --- deadlines, cancels, shedding, peers that do not read ---


def test_late_request_is_dropped_unless_always_asked(served: Served) -> None:
    def stall() -> None:
        served.loop.now += 0.5

    served.scans[1] = Script("slow", taking=stall)
    served.come(b"a", scan(1), scan(2, budget_us=400_000), Commit(3, 400_000, 0, None, []))
    served.loop.run()
    assert served.raw(b"a") == [b"slow"]
    assert served.counters.late == 1
    [(call, _)] = served.commits
    assert call.deadline < served.loop.now


def test_rest_of_answer_is_dropped_after_deadline(served: Served) -> None:
    def stall() -> None:
        served.loop.now += 0.6

    served.scans[1] = Script("first", "second", "third", taking=stall)
    served.come(b"a", scan(1))
    served.loop.run(1.0)
    assert served.raw(b"a") == [b"first", b"second"]
    assert served.counters.late == 1


def test_cancelled_requests_are_not_begun(served: Served) -> None:
    served.come(b"a", scan(1), Commit(2, BUDGET_US, 0, None, []), scan(3), Cancel([1, 2]))
    assert served.answer(b"a") == ScanReply(3, 0, [], True)
    assert len(served.commits) == 1, "a handler that is always asked is asked"
    assert served.counters.cancelled == 1


def test_requests_beyond_a_peers_queue_are_shed(served: Served) -> None:
    served.come(b"a", *[scan(number) for number in range(2_000)])
    replies = [decode_reply(frame) for frame in served.raw(b"a")]
    faults = [reply for reply in replies if isinstance(reply, Fault)]
    assert {fault.code for fault in faults} == {FaultCode.OVERLOADED}
    assert all(fault.retry_after_us > 0 for fault in faults)
    served.loop.run(0.1)
    assert len(faults) == served.counters.shed > 0


def test_peer_that_does_not_read_waits_alone(served: Served) -> None:
    served.scans[1] = Script("1", "2", "3")
    served.pipes.room[b"a"] = 1
    served.come(b"a", scan(1))
    served.come(b"b", scan(2))
    assert served.raw(b"a") == [b"1"]
    assert served.answer(b"b") == ScanReply(2, 0, [], True)
    served.pipes.room[b"a"] = 5
    served.loop.run(0.1)
    assert served.raw(b"a") == [b"2", b"3"]


# --- parked calls ---


def test_parked_call_is_answered_when_resumed(served: Served) -> None:
    call = served.park(b"a", 1, "cold 1", "cold 2")
    served.come(b"a", scan(2))
    assert served.answer(b"a") == ScanReply(2, 0, [], True), "others of the same peer are served meanwhile"
    served.server.resume(call)
    assert served.raw(b"a") == [], "never in the midst of somebody's callback"
    served.loop.run()
    assert served.raw(b"a") == [b"cold 1", b"cold 2"]


def test_parked_call_may_park_again(served: Served) -> None:
    script = served.scans[1] = Script(None, "1", None, "2")
    served.come(b"a", scan(1))
    for expected in ([b"1"], [b"2"]):
        served.server.resume(script.calls[-1])
        served.loop.run()
        assert served.raw(b"a") == expected
    assert len(script.calls) == 4
    assert len(set(script.calls)) == 1


def test_resumed_call_of_blocked_peer_waits_for_reading(served: Served) -> None:
    call = served.park(b"a", 1, "cold")
    served.scans[2] = Script("1", "2")
    served.pipes.room[b"a"] = 1
    served.come(b"a", scan(2))
    served.server.resume(call)
    served.loop.run()
    assert served.raw(b"a") == [b"1"]
    served.pipes.room[b"a"] = 5
    served.loop.run(0.1)
    assert served.raw(b"a") == [b"2", b"cold"]


def test_parked_call_of_peer_that_goes_is_abandoned(served: Served) -> None:
    call = served.park(b"a", 1, "cold")
    served.pipes.gone.add(b"a")
    served.come(b"a", scan(2))
    assert call.abandoned
    assert served.counters.dropped_replies == 2
    served.pipes.gone.clear()
    served.welcome(b"a")
    served.server.resume(call)
    served.loop.run()
    assert served.raw(b"a") == []


def test_cancelled_parked_call_is_not_answered(served: Served) -> None:
    call = served.park(b"a", 1, "cold")
    served.come(b"b", Cancel([1]))
    assert not call.abandoned
    served.come(b"a", Cancel([1]))
    assert (call.abandoned, served.counters.cancelled) == (True, 1)
    served.server.resume(call)
    served.loop.run()
    assert served.raw(b"a") == []


def test_parked_call_resumed_after_its_deadline_is_late(served: Served) -> None:
    call = served.park(b"a", 1, "cold")
    served.loop.run(1.1)
    assert not call.abandoned
    served.come(b"a", PING)
    served.raw(b"a")
    served.server.resume(call)
    served.loop.run()
    assert served.raw(b"a") == []
    assert served.counters.late == 1


def test_parked_calls_are_bounded_for_each_peer(served: Served) -> None:
    for number in range(1_100):
        served.scans[number] = Script(None, "cold")
    for number in range(1_100):
        served.come(b"a", scan(number))
    faults = [decode_reply(frame) for frame in served.raw(b"a")]
    assert len(faults) == served.counters.shed == 1_100 - 1_024
    served.come(b"b", scan(2_000))
    assert served.answer(b"b") == ScanReply(2_000, 0, [], True)


def test_invalid_request_found_after_resuming_is_answered(served: Served) -> None:
    call = served.park(b"a", 1, InvalidRequestError("an id is too long"))
    served.server.resume(call)
    served.loop.run()
    assert served.answer(b"a") == Fault(1, FaultCode.BAD_REQUEST, "an id is too long")


def test_closing_abandons_parked_calls_and_serves_nothing(served: Served) -> None:
    call = served.park(b"a", 1, "cold")
    served.server.close_intake()
    assert served.pipes.closed
    served.server.reply(b"a", ScanReply(9, 0, [], True))
    assert served.answer(b"a") == ScanReply(9, 0, [], True)
    served.server.close()
    assert call.abandoned
    served.server.resume(call)
    served.loop.run(10 * LIVENESS_TICK_S)
    assert served.raw(b"a") == []
