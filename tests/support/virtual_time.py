"""An event loop whose time jumps: when nothing is ready, the next timer is due at once.

Tests that wait for seconds take microseconds, and the same test takes the same course every time: the loop has no file
descriptors, no threads and no clock but its own. Waiting for anything else is an error, not a hang.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

__all__ = ["VirtualLoop", "run_virtual"]

T = TypeVar("T")

_BEGIN_S: Final = 1_000.0
"""Where time begins: not at 0, which is falsy."""


class _Jumps:
    """A replacement for a loop's selector that lets time jump instead of waiting."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Wait for nothing."""
        if timeout is None:
            raise AssertionError("nothing is ready and no timer is set: this would wait for ever")
        if timeout > 0:
            self._loop.pass_time(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop with timers and callbacks alone."""

    def __init__(self) -> None:
        super().__init__()
        self._now = _BEGIN_S
        self._selector = _Jumps(self)

    def time(self) -> float:
        """Return the time, in seconds."""
        return self._now

    def pass_time(self, seconds: float) -> None:
        """Let time pass; within a callback or a task that is a stall of the whole process."""
        self._now += seconds

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Do nothing: a loop without threads has no other thread to wake it."""


def run_virtual(test: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine on a loop of its own; fail with what its callbacks raised, if any did."""
    failures: list[BaseException] = []

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(context.get("exception") or RuntimeError(context["message"]))

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(handle)
        return await test()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(watched())
    if failures:
        raise BaseExceptionGroup("raised in callbacks", failures)
    return result
