"""Reply queues: replies in order, no peer waits for another, and the bytes held for one peer are bounded."""

from collections import defaultdict, deque

from dawnchorus.wire.protocol.messages import PONG
from dawnchorus.wire.transport.channel import Sent
from dawnchorus.wire.transport.counters import ServerCounters
from dawnchorus.wire.transport.liveness import SILENT_TICKS
from dawnchorus.wire.transport.reply_queues import PEER_BYTES_MAX, PEERS_MAX, Peers


class Pipes:
    """A channel as far as peers see it: each peer's pipe takes so many frames, or is gone."""

    def __init__(self) -> None:
        self.room: dict[bytes, int] = defaultdict(lambda: 1_000)
        self.gone: set[bytes] = set()
        self.sent: dict[bytes, deque[bytes]] = defaultdict(deque)

    def send_to(self, identity: bytes, frame: bytes) -> Sent:
        if identity in self.gone:
            return Sent.GONE
        if self.room[identity] == 0:
            return Sent.FULL
        self.room[identity] -= 1
        self.sent[identity].append(frame)
        return Sent.OK


class Made:
    """Peers on pipes that a test fills and empties."""

    def __init__(self, *welcomed: bytes, peers_max: int = PEERS_MAX) -> None:
        self.pipes = Pipes()
        self.counters = ServerCounters()
        self.peers = Peers(self.pipes, self.counters, peers_max=peers_max)
        for peer in welcomed:
            self.peers.add(peer)


def test_replies_are_sent_at_once_given_room() -> None:
    made = Made(b"a")
    assert made.peers.reply(b"a", b"1") is Sent.OK
    assert made.peers.reply(b"a", b"2") is Sent.OK
    assert list(made.pipes.sent[b"a"]) == [b"1", b"2"]
    assert not made.peers.blocked


def test_replies_wait_in_order_for_blocked_peer() -> None:
    made = Made(b"a", b"b")
    made.pipes.room[b"a"] = 1
    assert [made.peers.reply(b"a", b"%d" % number) for number in range(4)] == [Sent.OK, Sent.FULL, Sent.FULL, Sent.FULL]
    assert made.peers.blocked == {b"a"}
    assert made.peers.reply(b"b", b"other") is Sent.OK
    # There is room again, and still nothing overtakes the waiting replies.
    made.pipes.room[b"a"] = 2
    assert made.peers.reply(b"a", b"4") is Sent.FULL
    assert made.peers.retry() == ([], [])
    assert list(made.pipes.sent[b"a"]) == [b"0", b"1", b"2"]
    assert made.peers.blocked == {b"a"}
    made.pipes.room[b"a"] = 9
    assert made.peers.retry() == ([b"a"], [])
    assert list(made.pipes.sent[b"a"]) == [b"0", b"1", b"2", b"3", b"4"]
    assert not made.peers.blocked
    assert made.peers.retry() == ([], [])


def test_hundreds_of_small_replies_wait_without_loss() -> None:
    # The writer answers all saves of a group at once.
    made = Made(b"a")
    made.pipes.room[b"a"] = 16
    for number in range(10_000):
        made.peers.reply(b"a", b"%d" % number)
    assert made.counters.dropped_replies == 0
    made.pipes.room[b"a"] = 10_000
    assert made.peers.retry() == ([b"a"], [])
    assert list(made.pipes.sent[b"a"]) == [b"%d" % number for number in range(10_000)]


def test_replies_beyond_byte_limit_are_dropped_and_counted() -> None:
    made = Made(b"a")
    frame = bytes((1 << 20) - 64)
    for _ in range(2):
        made.pipes.room[b"a"] = 0
        for _ in range(40):
            assert made.peers.reply(b"a", frame) is Sent.FULL
        made.pipes.room[b"a"] = 100
        assert made.peers.retry() == ([b"a"], [])
    assert made.counters.dropped_replies == 16
    assert len(made.pipes.sent[b"a"]) == 64


def test_replies_to_departed_peer_are_dropped_and_counted() -> None:
    made = Made(b"a", b"b")
    made.pipes.room[b"a"] = made.pipes.room[b"b"] = 0
    for number in range(3):
        made.peers.reply(b"a", b"%d" % number)
    made.peers.reply(b"b", b"0")
    made.pipes.gone.add(b"a")
    assert made.peers.retry() == ([], [b"a"])
    assert b"a" not in made.peers
    assert made.peers.blocked == {b"b"}
    assert made.counters.dropped_replies == 3


def test_peer_found_gone_when_answered_is_forgotten() -> None:
    made = Made(b"a")
    made.pipes.gone.add(b"a")
    assert made.peers.reply(b"a", b"0") is Sent.GONE
    assert b"a" not in made.peers
    assert made.counters.dropped_replies == 1
    assert made.peers.reply(b"a", b"1") is Sent.GONE
    assert made.counters.dropped_replies == 2


def test_strangers_are_answered_but_nothing_is_kept() -> None:
    made = Made()
    assert made.peers.reply(b"x", b"fault") is Sent.OK
    made.pipes.room[b"x"] = 0
    assert made.peers.reply(b"x", b"fault") is Sent.FULL
    assert made.counters.dropped_replies == 1
    assert not made.peers.blocked
    assert len(made.peers) == 0


def test_silent_peer_makes_room_beyond_the_limit() -> None:
    made = Made(b"a", b"b", b"c", peers_max=3)
    assert made.peers.make_room() is None
    assert len(made.peers) == 3, "who is there stays: thousands would send each other away all the time"
    tick(made, SILENT_TICKS, b"a")
    tick(made, 1, b"a", b"c")
    assert made.peers.silent == 1
    assert made.peers.make_room() == b"b"
    assert len(made.peers) == 2
    made.peers.add(b"d")
    assert made.peers.make_room() is None
    assert "takes no more clients: it has 3" in made.peers.why_full()


def test_byte_limit_matches_the_documents() -> None:
    assert PEER_BYTES_MAX == 154 << 20


def tick(made: Made, times: int, *heard: bytes) -> list[bytes]:
    """Let ticks go by in which only these peers say something; return those that turned out to be gone."""
    gone: list[bytes] = []
    for _ in range(times):
        made.peers.heard.update(heard)
        gone += made.peers.handle_tick()
    return gone


def test_only_silent_peers_are_asked() -> None:
    made = Made(b"a", b"b")
    assert tick(made, SILENT_TICKS + 3, b"a") == []
    assert made.peers.silent == 1
    assert not made.pipes.sent[b"a"]
    assert list(made.pipes.sent[b"b"]) == [PONG] * 2
    assert tick(made, 1, b"b") == []
    assert made.peers.silent == 0


def test_silent_peer_that_is_gone_is_forgotten() -> None:
    made = Made(b"a", b"b")
    made.pipes.gone.add(b"a")
    assert tick(made, SILENT_TICKS + 1, b"b") == []
    assert tick(made, 1, b"b") == [b"a"]
    assert b"a" not in made.peers
    assert b"b" in made.peers


def test_replies_to_silent_blocked_peer_are_forgotten() -> None:
    made = Made(b"a")
    made.pipes.room[b"a"] = 2
    for number in range(5):
        made.peers.reply(b"a", b"%d" % number)
    assert tick(made, SILENT_TICKS + 1) == [b"a"]
    assert made.counters.dropped_replies == 3
    assert not made.peers.blocked
    assert list(made.pipes.sent[b"a"]) == [b"0", b"1"], "nothing more is sent to a peer that takes nothing"


def test_silent_peer_taking_its_replies_keeps_them() -> None:
    made = Made(b"a")
    made.pipes.room[b"a"] = 0
    for number in range(50):
        made.peers.reply(b"a", b"%d" % number)
    for _ in range(20):
        made.pipes.room[b"a"] = 1
        made.peers.retry()
        assert tick(made, SILENT_TICKS) == []
    assert made.counters.dropped_replies == 0
    made.pipes.room[b"a"] = 1_000
    assert made.peers.retry() == ([b"a"], [])
    assert len(made.pipes.sent[b"a"]) == 50


def test_peer_that_asks_without_reading_is_not_silent() -> None:
    made = Made(b"a")
    made.pipes.room[b"a"] = 0
    made.peers.reply(b"a", b"0")
    assert tick(made, 50, b"a") == []
    assert b"a" in made.peers


def test_ended_connection_makes_quiet_peer_asked_sooner() -> None:
    made = Made(b"a", b"b")
    made.pipes.gone.add(b"a")
    assert tick(made, 1, b"b") == []
    assert made.peers.handle_ended() == [], "it was heard in the last tick"
    assert tick(made, 1, b"b") == [b"a"]
    assert not made.pipes.sent[b"b"]


def test_peer_quiet_for_ticks_is_asked_at_once() -> None:
    made = Made(b"a", b"b")
    assert tick(made, SILENT_TICKS, b"b") == []
    made.pipes.gone.add(b"a")
    assert made.peers.handle_ended() == [b"a"]
    assert b"a" not in made.peers
    assert not made.pipes.sent[b"b"]


def test_long_stopped_peer_is_not_flooded_with_questions() -> None:
    made = Made(b"a")
    for _ in range(100):
        tick(made, 1)
        for _ in range(3):
            made.peers.handle_ended()
    assert len(made.pipes.sent[b"a"]) < 40, "a dozen when it fell silent, then seldom"
