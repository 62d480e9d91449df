"""Flow control towards one node: pure.

The router keeps a window of bytes that it expects from a node, by the sizes seen, and sends no more requests than fill
it; the rest wait here, in order. So a node's send queue stays short, however large the storm. While the node is not
connected everything waits; what was on its way when the connection broke waits again if asking twice does no harm.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["WINDOW_BYTES", "Exchange", "NodeFlow"]

WINDOW_BYTES: Final = 12 << 20
"""Bytes expected from one node at once: about twelve frames, of the sixteen that a node queues for one peer; at 1.6
GB/s 7 ms of the wire, so that neither side waits for the other."""


class Exchange(Protocol):
    """One request to one node, on its way to its answer, as flow control sees it."""

    number: int
    """The request's number, a new one each time it is sent: no reply to an earlier sending can be taken for it."""

    @property
    def expected_bytes(self) -> int:
        """How many bytes its reply is expected to have."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent twice."""
        ...


E = TypeVar("E", bound=Exchange)


class NodeFlow(Generic[E]):
    """Exchanges with one node: waiting, or on their way."""

    def __init__(self) -> None:
        self._waiting: deque[E] = deque()
        self._sent: dict[int, E] = {}
        self._expected_bytes = 0
        self._numbers = 0
        self.up = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def add(self, exchange: E) -> None:
        """Queue an exchange; `poll_send` gives it out when its turn comes."""
        self._waiting.append(exchange)

    def poll_send(self) -> E | None:
        """Return the next exchange to send now, numbered, None if none is; one always goes, however large."""
        if not self.up or not self._waiting:
            return None
        if self._sent and self._expected_bytes + self._waiting[0].expected_bytes > WINDOW_BYTES:
            return None
        exchange = self._waiting.popleft()
        self._numbers += 1
        exchange.number = self._numbers
        self._sent[exchange.number] = exchange
        self._expected_bytes += exchange.expected_bytes
        return exchange

    def find(self, number: int) -> E | None:
        """Return the exchange on its way with this number, None if there is none (any more)."""
        return self._sent.get(number)

    def handle_unsent(self, exchange: E) -> None:
        """Take back an exchange that `poll_send` gave out and the connection had no room for."""
        self._forget(exchange.number)
        self._waiting.appendleft(exchange)

    def handle_answered(self, number: int) -> None:
        """Take note that an exchange is over."""
        self._forget(number)

    def cancel(self, exchange: E) -> bool:
        """Forget an exchange that nobody waits for any more; return whether it had been sent."""
        if exchange.number in self._sent:
            self._forget(exchange.number)
            return True
        if self._waiting:
            with contextlib.suppress(ValueError):  # it was over already
                self._waiting.remove(exchange)
        return False

    def handle_up(self) -> None:
        """The node is connected: what waits may go."""
        self.up = True

    def handle_down(self) -> list[E]:
        """The connection broke: return the exchanges whose outcome nobody will tell; the others wait again, first."""
        self.up = False
        lost = [exchange for exchange in self._sent.values() if not exchange.repeatable]
        self._waiting.extendleft(reversed([exchange for exchange in self._sent.values() if exchange.repeatable]))
        self._sent.clear()
        self._expected_bytes = 0
        return lost

    def drain(self) -> list[E]:
        """Return and forget everything (the router closes)."""
        everything = [*self._sent.values(), *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        self._expected_bytes = 0
        return everything

    def _forget(self, number: int) -> None:
        exchange = self._sent.pop(number, None)
        if exchange is not None:
            self._expected_bytes -= exchange.expected_bytes
