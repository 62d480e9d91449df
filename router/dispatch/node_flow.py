"""Flow control towards one node: pure.

Every request to a node passes through its NodeFlow, which says when it may be sent, and tracks it until it ends:

    offer -> OPEN, FULL: rejected at once, by the breaker or because the node is behind and newcomers only add to that
          -> GO: it is sent now
          -> WAITS: the node is not connected, asked for a pause, or has enough on its way; or the breaker is open and
             it is patient; poll_send returns it when its turn has come, `polls_at` says when
    answered, timed out, rejected, cancelled, or the connection broke: it ends, or waits to be sent again

While the node is not connected everything waits; a request on its way when the connection broke waits again, if sending
it twice does no harm and the router's retry budget allows it. Every `now` is in seconds of the monotonic clock.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

from ...wire.cluster.topology import AdmissionSpec, BreakerSpec
from .circuit_breaker import Breaker, BreakerState
from .congestion_window import Window
from .exchange import Exchange
from .send_queue import WaitingQueue

__all__ = ["NodeFlow", "Offer"]

QUEUE_REQUESTS_MAX: Final = 4_096
"""Requests that may wait for one node: a wake_many of five million agents. Each may hold 1,300 ids."""

_TIMER_SLACK_SECONDS: Final = 0.001
"""The loop's timers have the grain of a millisecond and may fire that early."""


class Offer(enum.Enum):
    """The answer to a request that was offered."""

    GO = enum.auto()
    """It has its number, and is to be sent now."""
    WAITS = enum.auto()
    """`poll_send` returns it when its turn comes."""
    OPEN = enum.auto()
    """The breaker is open: the node is marked down."""
    FULL = enum.auto()
    """Too much waits for this node already."""


class NodeFlow:
    """Exchanges with one node: waiting, or on their way."""

    def __init__(self, breaker: BreakerSpec, admission: AdmissionSpec) -> None:
        self.breaker = Breaker(breaker)
        self.window = Window(admission)
        self._queue_share = admission.queue_share
        self._waiting: WaitingQueue[Exchange] = WaitingQueue()
        self._patient: dict[Exchange, None] = {}  # wait for the breaker, the first to come first
        self._sent: dict[int, Exchange] = {}
        self._numbers = 0
        self.paused_until = 0.0
        """The time from which the node may be sent requests again."""
        self.up = False
        self._up_since = 0.0

    def __len__(self) -> int:
        return self._waiting.length + len(self._patient) + len(self._sent)

    # --- sending ---

    def offer(self, exchange: Exchange, now: float) -> Offer:
        """Accept an exchange, or reject it at once."""
        if exchange.guarded:
            if (self._waiting.length or now < self.paused_until) and self.pressure(exchange, now) >= 1.0:
                return Offer.FULL
            if not self.breaker.admit(now):
                if not exchange.patient:
                    return Offer.OPEN
                if len(self._patient) >= QUEUE_REQUESTS_MAX:
                    return Offer.FULL
                self._patient[exchange] = None
                return Offer.WAITS
        if (
            self.up
            and not self._waiting.length
            and now >= self.paused_until
            and self.window.has_room(exchange.expected_bytes)
        ):
            self._number(exchange, now)
            return Offer.GO
        self._waiting.add(exchange, now)
        return Offer.WAITS

    @property
    def is_crowded(self) -> bool:
        """Whether newcomers have to wait."""
        return self._waiting.length > 0

    @property
    def is_awaited(self) -> bool:
        """Whether anything waits to be sent."""
        return self._waiting.length > 0 or len(self._patient) > 0

    def pressure(self, exchange: Exchange, now: float) -> float:
        """Return how far behind the node is for a newcomer: the wait there is, as a share of the wait that it may have.

        From 1 on it had better be rejected at once. An exchange that is not guarded may wait until its deadline.
        """
        if not exchange.guarded:
            return 0.0
        if self._waiting.length >= QUEUE_REQUESTS_MAX or self.paused_until >= exchange.deadline:
            return math.inf
        # A node that is not connected keeps everybody waiting: that is for the breaker to judge, and no measure of its
        # speed once it is connected.
        waited_s = min(self._waiting.longest_wait(now, exchange.priority), now - self._up_since)
        may_wait_s = self._queue_share * (exchange.deadline - now)
        return waited_s / may_wait_s if self.up and may_wait_s > 0 else 0.0

    def polls_at(self, now: float) -> float:
        """Return when `poll_send` may return something though no event comes before; infinite if it will not."""
        at = self.paused_until if now < self.paused_until else math.inf
        return min(at, self.breaker.admits_at) if self._patient else at

    def poll_send(self, now: float) -> Exchange | None:
        """Return the next exchange to send now, numbered, None if none is."""
        while self._patient and self.breaker.admit(now):
            self._waiting.add(_pop_first(self._patient), now)
        if not self.up or not self._waiting.length or now < self.paused_until:
            return None
        exchange = self._waiting.next()
        if exchange is None or not self.window.has_room(exchange.expected_bytes):
            return None
        self._waiting.pop(exchange)
        self._number(exchange, now)
        return exchange

    def _number(self, exchange: Exchange, now: float) -> None:
        self._numbers += 1
        exchange.number = self._numbers
        exchange.sent_at = now
        exchange.sendings += 1
        self._sent[exchange.number] = exchange
        self.window.handle_sent(exchange.expected_bytes)

    def handle_unsent(self, exchange: Exchange, now: float) -> None:
        """Take back an exchange from `poll_send` for which the connection had no room."""
        self._forget(exchange.number)
        exchange.sendings -= 1
        self._waiting.add_first(exchange, now)

    # --- ending ---

    def find(self, number: int) -> Exchange | None:
        """Return the exchange on its way with this number, None if there is none (any more)."""
        return self._sent.get(number)

    def handle_answered(self, exchange: Exchange, now: float) -> None:
        """Handle the complete answer to an exchange."""
        self.breaker.handle_success(now)
        self.window.handle_answered(now, exchange.sent_at, exchange.deadline, exchange.expected_bytes)
        self._forget(exchange.number)

    def handle_failed(self, exchange: Exchange, now: float) -> None:
        """Handle a node's own error in answering an exchange."""
        self._forget(exchange.number)
        self.breaker.handle_failure(now)

    def handle_overloaded(self, exchange: Exchange, now: float, retry_after_s: float) -> None:
        """Handle a rejection by an overloaded node, which asks for a pause."""
        self.breaker.handle_success(now)  # it is alive: it needs fewer requests, not a breaker
        if not exchange.waits_for_disk:
            self.window.handle_slow(now, exchange.sent_at)
            self.paused_until = max(self.paused_until, now + retry_after_s)
        self._forget(exchange.number)
        exchange.unserved += 1

    def handle_stray(self, now: float) -> None:
        """Handle an answer that nobody waits for any more: the node is slow, not dead."""
        self.breaker.handle_life(now)

    def drop(self, exchange: Exchange) -> None:
        """Forget an exchange from `poll_send` that is too late to send."""
        self._forget(exchange.number)
        exchange.sendings -= 1
        self.breaker.handle_abandoned()

    def send_again(self, exchange: Exchange, now: float) -> None:
        """Let an exchange that was sent wait for its turn once more, before all others."""
        self._waiting.add_first(exchange, now)

    def cancel(self, exchange: Exchange, now: float) -> bool:
        """Forget an exchange that nobody waits for any more; return whether it is on its way."""
        late = now >= exchange.deadline - _TIMER_SLACK_SECONDS
        if self._sent.get(exchange.number) is exchange:
            if late and exchange.guarded:
                self.breaker.handle_timeout(now, exchange.sent_at)
                self.window.handle_slow(now, exchange.sent_at)
            elif exchange.guarded:
                self.breaker.handle_abandoned()
            self._forget(exchange.number)
            return True
        if exchange in self._patient:
            del self._patient[exchange]  # it was not sent, nor a probe: the breaker learns nothing
        elif self._waiting.remove(exchange) and exchange.guarded:
            if late and not self.up:
                self.breaker.handle_timeout(now, exchange.queued_at)
            else:
                self.breaker.handle_abandoned()
        return False

    # --- the connection ---

    def handle_up(self, resume_at: float) -> None:
        """Let waiting exchanges be sent from `resume_at` on: the node is connected, or no longer silent."""
        self.up = True
        self._up_since = self.paused_until = resume_at
        self.breaker.handle_up(resume_at)

    def handle_silent(self) -> None:
        """Send nothing while the node is silent; exchanges on their way may still be answered."""
        self.up = False

    def handle_down(self, now: float, may_repeat: Callable[[], bool]) -> list[Exchange]:
        """Handle a broken connection; return the exchanges that it ends. The others wait again, before all others.

        `may_repeat` takes one retry out of the router's budget.
        """
        self.up = False
        sent, self._sent = list(self._sent.values()), {}
        self.window.reset()
        if sent:
            self.breaker.handle_failure(now)
        repeated = [
            exchange for exchange in _by_turns(sent) if exchange.repeatable and exchange.deadline > now and may_repeat()
        ]
        again = set(repeated)
        lost: list[Exchange] = []
        for exchange in reversed(sent):
            if exchange in again:
                self._waiting.add_first(exchange, now)
            else:
                lost.append(exchange)
        return lost[::-1]

    def rejected_by_breaker(self) -> list[Exchange]:
        """Return and forget all exchanges that wait while the breaker is open, but for patient and unguarded ones."""
        if self.breaker.state is not BreakerState.OPEN or not self._waiting.length:
            return []
        rejected: list[Exchange] = []
        for exchange in self._waiting.drain():
            if not exchange.guarded:
                self._waiting.add(exchange, exchange.queued_at)
            elif exchange.patient:
                self._patient[exchange] = None
            else:
                rejected.append(exchange)
        return rejected

    def drain(self) -> list[Exchange]:
        """Return and forget everything (the router closes)."""
        everything = [*self._sent.values(), *self._patient, *self._waiting.drain()]
        self._sent.clear()
        self._patient.clear()
        self.window.reset()
        return everything

    def _forget(self, number: int) -> None:
        exchange = self._sent.pop(number, None)
        if exchange is not None:
            self.window.handle_over(exchange.expected_bytes)


def _by_turns(exchanges: list[Exchange]) -> list[Exchange]:
    """Order exchanges so that callers take turns: one call's many requests use up no other's retry."""
    turns: dict[object, int] = {}
    keyed: list[tuple[int, int]] = []
    for number, exchange in enumerate(exchanges):
        turn = turns.get(exchange.caller, 0)
        turns[exchange.caller] = turn + 1
        keyed.append((turn, number))
    return [exchanges[number] for _, number in sorted(keyed)]


def _pop_first(exchanges: dict[Exchange, None]) -> Exchange:
    first = next(iter(exchanges))
    del exchanges[first]
    return first
