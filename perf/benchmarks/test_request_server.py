"""The request server: what a small request costs between its channel and its handler, and back."""

from collections.abc import Callable
from typing import Any

from dawnchorus.wire.protocol.messages import PROTOCOL, Fault, Fetch, FetchSection, Hello, Welcome, encode
from dawnchorus.wire.transport.acceptance import Acceptance
from dawnchorus.wire.transport.channel import Sent
from dawnchorus.wire.transport.counters import ServerCounters
from dawnchorus.wire.transport.handlers import Answer, Handler
from dawnchorus.wire.transport.request_queue import Call
from dawnchorus.wire.transport.request_server import RequestServer

Timed = Callable[..., Any]
"""The `benchmark` fixture: calls a function many times and returns its result; its own class has no types."""

PEERS = 4
REQUESTS = 64
"""Drained in one turn of the loop, from all peers alike."""


class Sink:
    """A channel, a loop and a greeter that cost next to nothing."""

    def __init__(self) -> None:
        self.deliver: Callable[[list[list[bytes]]], None] = lambda _: None
        self.sent = 0
        self.soon: list[Callable[[], object]] = []

    def open(self, deliver: Callable[[list[list[bytes]]], None], _handle_ended: Callable[[], None]) -> "Sink":
        self.deliver = deliver
        return self

    def send_to(self, identity: bytes, frame: bytes) -> Sent:
        self.sent += 1
        return Sent.OK

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass

    def cancel(self) -> None:
        pass

    def call_soon(self, callback: Callable[[], object], /) -> "Sink":
        self.soon.append(callback)
        return self

    def call_later(self, delay: float, callback: Callable[[], object], /) -> "Sink":
        return self

    def rejection(self, hello: Hello) -> Fault | None:
        return None

    def welcome(self, *, ipc: bool) -> Welcome:
        return Welcome("n", "", b"", b"", "", 1)


class OneFrame:
    """An answer of one frame."""

    def next_frame(self, call: Call, /) -> tuple[bytes, bool] | None:
        return b"frame", True


def test_small_requests_through_the_server(benchmark: Timed) -> None:
    sink = Sink()

    def fetch(_call: Call, _fetch: Fetch) -> Answer:
        return OneFrame()

    acceptance = Acceptance(lambda _: None)
    server = RequestServer(sink, {Fetch: Handler(fetch)}, sink, acceptance, ServerCounters())
    server.start(sink.open)
    peers = [b"peer%d" % number for number in range(PEERS)]
    sink.deliver([[peer, encode(Hello(PROTOCOL, "", b"", ""))] for peer in peers])
    section = FetchSection("state", 3, 1, [b"agent-00000042"])
    frames = [encode(Fetch(number, 60_000_000, 1, None, [section])) for number in range(REQUESTS)]
    messages = [[peers[number % PEERS], frame] for number, frame in enumerate(frames)]

    def drain() -> int:
        before = sink.sent
        sink.deliver(messages)
        while sink.soon:
            sink.soon.pop()()
        return sink.sent - before

    assert benchmark(drain) == REQUESTS
    server.close()
    acceptance.close()
