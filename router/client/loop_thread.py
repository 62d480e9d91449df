"""An event loop in a thread of its own, which any number of other threads call and wait for.

A call is put into a queue; the first of a batch wakes the loop, those that come before it has looked join. The loop
begins all of them in one turn, so that what one turn's wakes share is shared by the wakes of many threads. Whoever
calls waits at a lock of its own call: nothing is shared between callers but the queue, whose operations are atomic.

Every wait is bounded: the loop keeps the deadlines, and whoever waits for it goes by itself some seconds after.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import pairwise
from typing import Any, Final, Generic, TypeVar

import uvloop

from ...wire.errors import ClusterUnavailable, WrongLoopError

__all__ = ["Call", "LoopThread"]

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger(__name__)

_GRACE_SECONDS: Final = 5.0
"""How much longer than a call's deadline its caller waits for the loop, twice: after a stop of the whole process the
first is over at once, and the loop still gets its turn."""

_ROWS: Final = 4
"""Of calls that end together. One row needs as little CPU, but beside a thread that computes each step of it may take
the interpreter's switch interval, 5 ms."""

_CLOSE_SECONDS: Final = 2.0
"""How long closing waits for what is under way to end by itself, and for the thread to go."""


class Call:
    """Something to be done in the loop, and the caller who waits for it at a lock.

    Calls that end together stand in a few rows: each caller that wakes up lets the next one of its row go on. If all
    were let go at once, each would wake only to wait for the interpreter: 64 callers then took 28 us of CPU a call,
    17 in rows.
    """

    __slots__ = ("arguments", "behind", "ended", "error", "function", "future", "given_up", "over")

    def __init__(self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.future: asyncio.Future[Any] | None = None
        self.error: BaseException | None = None
        # A bare lock, taken: half of what an Event or a Condition costs. Its release is the end of the call.
        self.ended = threading.Lock()
        self.ended.acquire()
        self.over = False
        self.given_up = False
        self.behind: list[Call] = []
        """Who is let go next, at most one; taken out by `pop`, which only one thread succeeds with."""

    def end(self) -> None:
        """Let the caller go on."""
        self.over = True
        self.ended.release()
        if self.given_up:
            self.let_next_go()

    def fail(self, error: BaseException) -> None:
        """Let the caller go on to this error."""
        self.error = error
        self.end()

    def wait(self, seconds: float) -> bool:
        """Return whether it ended within these seconds."""
        if not self.ended.acquire(timeout=seconds):
            return False
        self.let_next_go()
        return True

    def give_up(self) -> None:
        """Take note that the caller no longer waits: whoever is behind it is let go in its place."""
        self.given_up = True
        if self.over:
            self.let_next_go()

    def let_next_go(self) -> None:
        """Let the next one of the row go on; once, whoever comes to do it first."""
        if self.behind:
            try:
                call = self.behind.pop()
            except IndexError:
                return
            call.end()


class LoopThread(Generic[R]):
    """A loop with something open in it, `resource`, until `close`."""

    resource: R

    def __init__(
        self,
        opening: Callable[[], AbstractAsyncContextManager[R]],
        name: str,
        *,
        grace_s: float = _GRACE_SECONDS,
        close_s: float = _CLOSE_SECONDS,
    ) -> None:
        """`opening` is called in the loop, and gives what is opened there."""
        self._opening = opening
        self._grace_s = grace_s
        self._close_s = close_s
        self._calls: deque[Call] = deque()
        self._scheduled = False
        self._under_way = 0
        self._over: list[Call] = []  # of this turn
        self._closed = False
        self._is_open = False
        self._ident = 0
        self._opened = Call(lambda: asyncio.sleep(0), ())
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._task: asyncio.Task[Any] | None = None

    @property
    def _ended(self) -> bool:
        return self._closed

    @property
    def calls_waiting(self) -> int:
        """How many calls the loop has not looked at yet."""
        return len(self._calls)

    def start(self, deadline_s: float) -> None:
        """Open; return when it is open.

        Raises: what opening raises; ClusterUnavailable: it took longer than the deadline and some seconds.
        """
        _running.add(self)
        try:
            self._thread.start()
            if not self._opened.wait(deadline_s + self._grace_s):
                self._wait(self._opened, deadline_s)
            if self._opened.error is not None:
                raise self._opened.error
        except BaseException:
            self.close()
            raise

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any, limit_s: float) -> T:
        """Call a function in the loop; return or raise what it gives when awaited, which ends by itself in `limit_s`.

        Raises:
            ClusterUnavailable: it was closed, or the loop does not come to this.
            WrongLoopError: this is the loop's own thread, which would wait for itself.
        """
        if threading.get_ident() == self._ident:
            raise WrongLoopError("a blocking call from within the cluster's own thread would wait for itself")
        if self._closed:
            raise ClusterUnavailable("the cluster was closed")
        call = Call(function, arguments)
        try:
            self._calls.append(call)
            if not self._scheduled:
                self._scheduled = True
                self._wake_up()
            if self._ended:  # just now
                self._reject_calls()
            # In one piece, for what every call passes: `Call.wait` without its frame.
            if call.ended.acquire(True, limit_s + self._grace_s):
                if call.behind:
                    call.let_next_go()
            else:
                self._wait(call, limit_s)
        except BaseException:  # KeyboardInterrupt above all: nobody waits any more
            self._give_up(call)
            raise
        if call.error is not None:
            raise call.error
        future = call.future
        assert future is not None
        if future.cancelled():
            raise ClusterUnavailable("the cluster was closed")
        return future.result()  # type: ignore[no-any-return] # what the function gives

    def _wake_up(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._take_in)
        except RuntimeError:  # it was closed just now
            self._closed = True

    def _wait(self, call: Call, limit_s: float) -> None:
        if not call.wait(self._grace_s):
            raise ClusterUnavailable(
                f"the cluster's own thread did not come to a call within {limit_s + 2 * self._grace_s:g} s: is it held"
                " up by other threads of this process?"
            )

    def _give_up(self, call: Call) -> None:
        def cancel() -> None:
            if call.future is not None:
                call.future.cancel()
            else:
                call.function, call.arguments = _nothing, ()

        call.give_up()
        try:
            self._loop.call_soon_threadsafe(cancel)
        except (AttributeError, RuntimeError):
            pass  # there is no loop yet, or none any more

    def close(self) -> None:
        """End what is under way and the thread; what still waits raises ClusterUnavailable."""
        self._closed = True
        _running.discard(self)
        try:
            self._loop.call_soon_threadsafe(self._end)
        except (AttributeError, RuntimeError):
            pass  # it never came that far, or has gone already
        if self._thread.ident not in (None, threading.get_ident()):
            self._thread.join(2 * self._close_s)
        self._reject_calls()

    def _reject_calls(self) -> None:
        while self._calls:
            self._calls.popleft().fail(ClusterUnavailable("the cluster was closed"))

    # --- in the thread ---

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._opened.over:
                _log.exception("the thread of a cluster ended by an error")
            else:
                self._opened.fail(error)
        finally:
            self._closed = True
            self._reject_calls()

    async def _serve(self) -> None:
        self._ident = threading.get_ident()
        self._stop = asyncio.Event()
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        async with self._opening() as self.resource:
            self._is_open = True
            self._opened.end()
            await self._stop.wait()
        # Calls under way end by what was closed, in the turns that follow; the runner cancels those that do not.
        await asyncio.sleep(0)
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        if waiting:
            await asyncio.wait(waiting, timeout=self._close_s)

    def _end(self) -> None:
        if self._is_open:
            self._stop.set()
        elif self._task is not None:
            self._task.cancel()  # nobody waits any more for it to be opened

    def _take_in(self) -> None:
        """Begin what was called for, all of it in this turn."""
        self._scheduled = False  # first: a call that comes from now on schedules anew
        calls = self._calls
        while calls:
            self._begin(calls.popleft())

    def _begin(self, call: Call) -> None:
        try:
            future = call.future = asyncio.ensure_future(call.function(*call.arguments))
        except Exception as error:
            call.fail(error)
        else:
            self._under_way += 1
            future.add_done_callback(partial(self._handle_done, call))

    def _handle_done(self, call: Call, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # its caller sees it; where there is none any more, nothing is to be logged about it
        self._under_way -= 1
        if not self._over and not self._under_way:
            call.end()
            return
        if not self._over:
            self._loop.call_soon(self._let_go)
        self._over.append(call)

    def _let_go(self) -> None:
        """Let the callers go on whose calls ended in this turn."""
        over, self._over = self._over, []
        for row in range(min(_ROWS, len(over))):
            calls = over[row::_ROWS]
            for call, behind in pairwise(calls):
                call.behind.append(behind)
            calls[0].end()


async def _nothing() -> None:
    """Do nothing: what becomes of a call that was given up before it began."""


_running: set[LoopThread[Any]] = set()
"""Those to be closed before the interpreter ends: a thread in the middle of a loop must not outlive it."""

_left_behind: list[LoopThread[Any]] = []
"""In a forked child, those of its parent: kept, because taking them apart would touch what the parent uses."""


def _close_all() -> None:
    for thread in list(_running):
        thread.close()


def _leave_all_behind() -> None:
    _left_behind.extend(_running)
    _running.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_leave_all_behind)
