"""The event loop, thread and process that a cluster belongs to, and the errors of calls from anywhere else.

A cluster's sockets, timers and tables are used without locks: by one thread, in the turns of one loop. A call from
another loop would wait for a future that is never resolved there, one from another thread would use a socket at the
same time as its owner, and a forked child shares its parent's descriptors. So every entry point first checks that it is
called at home: one comparison, since a loop runs in one thread at a time. After a fork no loop is home any more.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from asyncio import current_task
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from threading import get_ident
from types import TracebackType
from typing import Any, Final, TypeVar

from ...wire.errors import ClusterUnavailable, DawnchorusError, InvalidRequestError, WrongLoopError

__all__ = ["Home", "HomeStream", "while_open"]

T = TypeVar("T")

_NOWHERE: Final = object()
"""The loop of a cluster that is not open, or that was opened before a fork: no running loop equals it."""


class Home:
    """The place where a cluster was opened. `loop` is its event loop while it is open, and no loop at all otherwise.

    `thread` is the identifier of the thread in which the loop runs.
    """

    def __init__(self) -> None:
        self.loop: Any = _NOWHERE
        self.thread = 0
        self.turn = 0
        """The thread, for the rest of a turn of the loop in which a check has passed; 0 otherwise."""
        self._opened_in: object = _NOWHERE
        self._entered = False
        self._closed = False
        self._barred: str | None = None
        self._thread = ""
        self._process = os.getpid()
        _homes.add(self)

    def enter(self) -> None:
        """Begin to open the cluster, in the running loop.

        Raises:
            InvalidRequestError: it is open already, or about to be.
            WrongLoopError: it was opened before a fork.
        """
        if self._entered:
            if os.getpid() != self._process:
                raise self.rejection()
            raise InvalidRequestError("this cluster is open already: each `async with` needs a `connect` of its own")
        self._entered = True
        self._process = os.getpid()
        self.thread = get_ident()
        self._thread = threading.current_thread().name
        self._opened_in = asyncio.get_running_loop()

    def open(self) -> None:
        """Accept calls: the cluster is open."""
        self._barred = None
        self.loop = self._opened_in
        self._closed = False

    def leave(self) -> None:
        """Reject calls: the cluster is closed, or could not be opened."""
        self._closed = self.loop is not _NOWHERE or self._barred is not None
        self._barred = None
        self.loop = _NOWHERE
        self.turn = 0
        self._entered = False

    def bar(self, why: str | None) -> None:
        """Reject calls while an error affects the entire cluster; accept them again with None."""
        self._barred = why
        self.turn = 0
        if self._entered and os.getpid() == self._process:
            self.loop = self._opened_in if why is None else _NOWHERE

    @property
    def is_open(self) -> bool:
        """Whether the cluster is open, here or elsewhere."""
        return self._entered

    def is_here(self) -> bool:
        """Return whether this is the loop, thread and process in which the cluster is, or was last, open."""
        try:
            return asyncio.get_running_loop() is self._opened_in and os.getpid() == self._process
        except RuntimeError:
            return False

    def require_open(self) -> None:
        """Require that the cluster is open and this its loop; 0.1 us within a task.

        Raises:
            ClusterUnavailable: it is not open.
            WrongLoopError: this is another loop, thread or process.
        """
        # Before Python 3.12 asking for the running loop costs 0.4 us, since it asks the system for the process.
        if get_ident() == self.thread and current_task(self.loop) is not None:
            return
        try:
            if asyncio.get_running_loop() is self.loop:
                return
        except RuntimeError:
            pass  # no loop runs here
        raise self.rejection()

    def begin_turn(self) -> None:
        """Do as `require_open`, and let `turn` alone accept further wakes of this turn: there may be ten thousand.

        A turn in which the loop was stopped continues when it is started again. A wake from another loop of the thread
        until then gets a future of this loop, for which the other cannot wait.
        """
        self.require_open()
        self.turn = self.thread
        self.loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self.turn = 0

    def require_entered(self) -> None:
        """Do as `require_open`, but accept calls while an error affects the entire cluster too.

        Raises: as `require_open`.
        """
        if self._barred is None or not self.is_here():
            self.require_open()

    def require_here(self) -> None:
        """Require that this is the cluster's loop, thread and process, whether it is open or not.

        Raises:
            WrongLoopError: this is another loop, thread or process.
        """
        if self._opened_in is not _NOWHERE and not self.is_here():
            raise self._elsewhere()

    def rejection(self) -> DawnchorusError:
        """Return the error of a call that found no open cluster of its own loop."""
        if self._barred is not None and self.is_here():
            return ClusterUnavailable(self._barred)
        if not self._entered or (self.loop is _NOWHERE and self._barred is None and os.getpid() == self._process):
            how = "was closed" if self._closed else "is not open; use it inside `async with connect(...)`"
            return ClusterUnavailable(f"the cluster {how}")
        return self._elsewhere()

    def _elsewhere(self) -> WrongLoopError:
        if os.getpid() != self._process:
            return WrongLoopError(
                f"this cluster was opened in process {self._process}, and process {os.getpid()} is a fork of it:"
                " connect anew after the fork, or use `connect_sync`, which does; nothing was sent"
            )
        here = threading.current_thread().name
        if here != self._thread:
            return WrongLoopError(
                f"this cluster was opened in thread {self._thread!r} and is used in {here!r}: it belongs to one event"
                " loop. `connect_sync` gives one for any number of threads; `asyncio.run_coroutine_threadsafe` brings a"
                " call into its loop; nothing was sent"
            )
        return WrongLoopError(
            "this cluster was opened in another event loop, which is the only one that it can be used in: open it in"
            " the loop that uses it; nothing was sent"
        )


_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _leave_all() -> None:
    """Forget every home in the child after a fork: none of its loops is one in which a cluster was opened."""
    for home in list(_homes):
        home.loop = _NOWHERE
        home.turn = 0


os.register_at_fork(after_in_child=_leave_all)


class HomeStream(AsyncGenerator[T, None]):
    """An asynchronous generator that is resumed only in its cluster's loop."""

    def __init__(self, home: Home, items: AsyncGenerator[T, None]) -> None:
        self._home = home
        self._items = items

    def __anext__(self) -> Coroutine[Any, Any, T]:
        """Return a coroutine that gives the next item.

        Raises:
            ClusterUnavailable, WrongLoopError: as every call of the cluster.
        """
        self._home.require_open()
        return self._items.__anext__()

    def asend(self, value: None) -> Coroutine[Any, Any, T]:
        """Do as `__anext__`."""
        self._home.require_open()
        return self._items.asend(value)

    def athrow(self, typ: Any, val: object = None, tb: TracebackType | None = None) -> Coroutine[Any, Any, T]:
        """Raise an exception in the generator at the point at which it waits."""
        self._home.require_here()
        return self._items.athrow(typ, val, tb)

    def aclose(self) -> Coroutine[Any, Any, None]:
        """End the generator, also that of a closed cluster."""
        self._home.require_here()
        return self._items.aclose()


async def while_open(home: Home, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield items until the cluster is closed."""
    async with aclosing(items) as opened:
        async for item in opened:
            home.require_open()
            yield item
