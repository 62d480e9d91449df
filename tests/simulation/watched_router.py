"""A router whose exchanges are watched: each is notified once, and sent no more often than the budget allows.

Only what is imported from its sources can be watched so (`tests.support.from_source`).
"""

# pyright: reportPrivateUsage=false

from collections.abc import Collection, Iterable
from typing import Any

from dawnchorus.router.dispatch import unary_call
from dawnchorus.router.dispatch.exchange import Exchange
from dawnchorus.router.dispatch.router import Router
from dawnchorus.router.saves import commit_operation
from dawnchorus.router.wakes import fetch_operation
from tests.support.internals import kept_exchanges

__all__ = ["WatchedRouter", "watch_exchanges"]


class WatchedRouter(Router):
    """A router that notes how each exchange submitted to it ended."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.submitted: dict[Exchange, str] = {}
        """How each ended, "" if it has not."""
        self.first_sendings = 0
        self.wrong: list[str] = []
        _watchers.append(self)

    def submit(self, exchanges: Collection[Exchange]) -> None:
        """Submit, and watch."""
        for exchange in exchanges:
            if not self.submitted.get(exchange, "none"):
                self.wrong.append(f"{exchange!r} is submitted again before it has ended")
            self.submitted[exchange] = ""
        super().submit(exchanges)

    def cancel(self, exchanges: Iterable[Exchange]) -> None:
        """Cancel, and note it; exchanges that have ended may be cancelled."""
        cancelled = list(exchanges)
        super().cancel(cancelled)
        for exchange in cancelled:
            self.submitted[exchange] = self.submitted[exchange] or "cancelled"

    def handle_end(self, exchange: Exchange, how: str) -> None:
        """Note that an exchange was notified for the last time."""
        if self.submitted[exchange]:
            self.wrong.append(f"an exchange is notified ({how}) after it was {self.submitted[exchange]}")
        self.submitted[exchange] = how

    def unended(self) -> int:
        """Return how many exchanges nobody was notified of."""
        return sum(not how for how in self.submitted.values())

    def kept(self) -> int:
        """Return how many exchanges the dispatcher has."""
        kept = kept_exchanges(self.dispatcher)
        return kept.get("exchanges", 0) + kept.get("delayed", 0)

    def sendings(self) -> tuple[int, int]:
        """Return how many exchanges were sent, and how many sendings beyond the first that took."""
        sent = [exchange.sendings for exchange in self.submitted if exchange.sendings]
        return len(sent), sum(sent) - len(sent)


_watchers: list[WatchedRouter] = []


def _watcher(exchange: Exchange) -> WatchedRouter:
    return next(router for router in _watchers if exchange in router.submitted)


def watch_exchanges() -> None:
    """Let all kinds of exchanges say what they are notified of."""
    _watchers.clear()
    for kind in (fetch_operation._FetchExchange, commit_operation._CommitExchange, unary_call._Call):
        _watch(kind)


def _watch(kind: Any) -> None:
    if hasattr(kind, "watched"):
        return
    kind.watched = True
    handle_reply, handle_failure = kind.handle_reply, kind.handle_failure

    def reply(self: Exchange, reply: Any) -> bool:
        last: bool = handle_reply(self, reply)
        if last:
            _watcher(self).handle_end(self, "answered")
        return last

    def fail(self: Exchange, code: Any, reason: str) -> None:
        _watcher(self).handle_end(self, "failed")
        handle_failure(self, code, reason)

    kind.handle_reply, kind.handle_failure = reply, fail
