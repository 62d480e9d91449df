"""The part of an event loop that calls back, soon or later: a simulation gives its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Scheduler", "Timer"]


class Timer(Protocol):
    """A callback that is to come."""

    def cancel(self) -> object:
        """Let it not come."""
        ...


class Scheduler(Protocol):
    """An event loop, as far as the server needs one; a simulation gives its own."""

    def call_soon(self, callback: Callable[[], object], /) -> object:
        """Call back in the loop's next turn."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call back after so many seconds."""
        ...
