"""Requests that wait for their node, fair between callers and in two priorities: pure.

Urgent requests (wakes, saves) go before background ones (listings). Within a priority callers take turns, a request
each, so that a wake_many of ten thousand does not hold up another caller's single wake. How long callers wait for their
first turn says whether the node keeps up: the last of ten thousand agents always waits.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["Priority", "WaitingQueue"]


class Priority(enum.IntEnum):
    """The order of requests: lower numbers first."""

    URGENT = 0
    """A request that a caller waits for: a wake, a save."""
    BACKGROUND = 1
    """A request that no caller waits for just now: a listing, a copy."""


class Waiting(Protocol):
    """A request as this queue sees it; it keeps `waits` and `queued_at` (seconds of the monotonic clock) there."""

    caller: object
    priority: Priority
    waits: bool
    queued_at: float


W = TypeVar("W", bound=Waiting)

_PRIORITIES: Final = len(Priority)


class WaitingQueue(Generic[W]):
    """Requests to one node that may not go yet. Every `now` is in seconds of the monotonic clock."""

    __slots__ = ("_callers", "_first", "_newcomers", "length")

    def __init__(self) -> None:
        self._first: deque[W] = deque()  # to be sent again: before all others
        self._callers: tuple[dict[object, deque[W]], ...] = tuple({} for _ in range(_PRIORITIES))
        # The first request of each caller that has had no turn yet. Callers have their turns in this order, so that
        # requests that wait no more are always dropped soon.
        self._newcomers: tuple[deque[W], ...] = tuple(deque[W]() for _ in range(_PRIORITIES))
        self.length = 0
        """How many wait: a plain number, as it is looked at for every request."""

    def add(self, request: W, now: float) -> None:
        """Let a request wait behind those of its caller."""
        callers = self._callers[request.priority]
        queue = callers.get(request.caller)
        if queue is None:
            queue = callers[request.caller] = deque()
            self._newcomers[request.priority].append(request)
        queue.append(request)
        self._note(request, now)

    def add_first(self, request: W, now: float) -> None:
        """Let a request wait before all others: it was sent before, or could not be."""
        self._first.appendleft(request)
        self._note(request, now)

    def next(self) -> W | None:
        """Return the request whose turn it is, None if none waits; it stays until `pop`."""
        self._drop_gone(self._first)
        if self._first:
            return self._first[0]
        for callers in self._callers:
            while callers:
                caller, queue = next(iter(callers.items()))
                self._drop_gone(queue)
                if queue:
                    return queue[0]
                del callers[caller]
        return None

    def pop(self, request: W) -> None:
        """Take out the request that `next` returned; its caller's next turn comes after all others'."""
        if self._first and self._first[0] is request:
            self._first.popleft()
        else:
            callers = self._callers[request.priority]
            queue = callers.pop(request.caller)
            queue.popleft()
            if queue:
                callers[request.caller] = queue
        self.remove(request)

    def remove(self, request: W) -> bool:
        """Let a request wait no more; return whether it did."""
        if not request.waits:
            return False
        request.waits = False
        self.length -= 1
        if not self.length:
            self._clear()  # requests left there have ended: the queue is to keep none of them alive
        return True

    def longest_wait(self, now: float, priority: Priority) -> float:
        """Return for how many seconds callers wait for their first turn, of this priority and those before it."""
        longest = 0.0
        for newcomers in self._newcomers[: priority + 1]:
            self._drop_gone(newcomers)
            if newcomers:
                longest = max(longest, now - newcomers[0].queued_at)
        return longest

    def drain(self) -> list[W]:
        """Return and forget all that wait, in no order."""
        queues = [self._first, *[queue for callers in self._callers for queue in callers.values()]]
        everything = [request for queue in queues for request in queue if request.waits]
        for request in everything:
            request.waits = False
        self._clear()
        self.length = 0
        return everything

    def _clear(self) -> None:
        self._first.clear()
        for callers, newcomers in zip(self._callers, self._newcomers, strict=True):
            callers.clear()
            newcomers.clear()

    def _note(self, request: W, now: float) -> None:
        request.waits = True
        request.queued_at = now
        self.length += 1

    @staticmethod
    def _drop_gone(queue: deque[W]) -> None:
        while queue and not queue[0].waits:
            queue.popleft()
