"""Faults by signal: nodes stopped, nodes that get only a share of a core, nodes killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from typing import Final

from ..harness.child_process import ChildFailed, check_running, child_process
from .hold import HOLDING

__all__ = ["Kills", "killed", "stopped", "throttled"]

_HOLD_SECONDS: Final = 20.0
"""How long the holding process may take to start, on a machine that has much to do."""

_FOREVER_MS: Final = 60_000.0
"""Period of a stop that does not end by itself."""

_LOOK_SECONDS: Final = 0.01


@contextlib.asynccontextmanager
async def stopped(pids: Sequence[int], directory: Path) -> AsyncGenerator[None]:
    """SIGSTOP these processes while the block runs, then SIGCONT. The kernel still takes connections and bytes."""
    async with _held(pids, 0.0, _FOREVER_MS, directory):
        yield


@contextlib.asynccontextmanager
async def throttled(pids: Sequence[int], share: float, period_ms: float, directory: Path) -> AsyncGenerator[None]:
    """Let each of these processes have this share of a core, within periods so long, while the block runs."""
    async with _held(pids, share, period_ms, directory):
        yield


@contextlib.asynccontextmanager
async def _held(pids: Sequence[int], share: float, period_ms: float, directory: Path) -> AsyncGenerator[None]:
    log = directory / f"hold-{time.monotonic_ns()}.log"
    program = str(Path(__file__).with_name("hold.py"))
    command = [sys.executable, "-I", "-S", program, str(share), str(period_ms), *map(str, pids)]
    with _let_go(pids), child_process(command, log=log) as process:
        end = time.monotonic() + _HOLD_SECONDS
        while not log.read_bytes().startswith(HOLDING):
            check_running(process, "the process that holds nodes", log)
            if time.monotonic() > end:
                raise ChildFailed(f"the process that holds nodes did not start within {_HOLD_SECONDS:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)
        yield
        check_running(process, "the process that holds nodes", log)


@contextlib.contextmanager
def _let_go(pids: Sequence[int]) -> Generator[None]:
    """Send SIGCONT in the end, in case the holding process could not."""
    with contextlib.ExitStack() as stack:
        pidfds = [os.pidfd_open(pid) for pid in pids]
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
        try:
            yield
        finally:
            for pidfd in pidfds:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)


class Kills:
    """When a node was killed, in nanoseconds of the monotonic clock."""

    def __init__(self) -> None:
        self.at_ns: list[int] = []


@contextlib.asynccontextmanager
async def killed(
    serving: Callable[[], int | None], *, first_after_s: float, every_s: float, most: int
) -> AsyncGenerator[Kills]:
    """SIGKILL a node again and again while the block runs, `most` times at most; somebody else starts it again.

    `serving` says which process serves at the moment, None while there is none. One that is started again lives for
    half of `every_s` at least, so that it does come back in between.
    """
    kills = Kills()
    killing = asyncio.create_task(_kill(serving, kills, first_after_s, every_s, most))
    try:
        yield kills
    finally:
        killing.cancel()
        (result,) = await asyncio.gather(killing, return_exceptions=True)
    if isinstance(result, Exception):
        raise result


async def _kill(
    serving: Callable[[], int | None], kills: Kills, first_after_s: float, every_s: float, most: int
) -> None:
    dead: int | None = None
    pause_s = first_after_s
    for _ in range(most):
        next_s = time.monotonic() + pause_s
        while (pid := serving()) is None or pid == dead:  # noqa: ASYNC110 - the launcher's events are not ours
            await asyncio.sleep(_LOOK_SECONDS)
        lives_s = 0.0 if dead is None else every_s / 2
        await asyncio.sleep(max(next_s - time.monotonic(), lives_s))
        # Not in between: a process that has ended meanwhile may have been followed by another's with its number.
        if serving() == pid:
            os.kill(pid, signal.SIGKILL)
            kills.at_ns.append(time.monotonic_ns())
        dead, pause_s = pid, every_s
