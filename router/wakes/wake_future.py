"""The future of a wake, whose representation explains its use to callers who expect a coroutine.

`create_task(cluster.wake(id))` cannot work: `wake` gives a future, so that ten thousand can be gathered without a task
each, and create_task takes coroutines alone. Its error shows what it got, so this says what to do instead. A task that
awaits a future of a class of its own does so the slow way (0.1 to 0.3 us each), and so only the first of each batch is
one: that is the one at which such a program stops.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

__all__ = ["WakeFuture"]

T = TypeVar("T")


class WakeFuture(asyncio.Future[T]):
    """A future whose representation says how it is used."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = super().__repr__().removesuffix(">")
        return f"{shown}; it is under way already: await it, or give it to asyncio.ensure_future or gather as it is>"
