"""The part of a script that needs a network of its own; started by `run`.

    python -m dawnchorus.perf.chaos.child ORDER ANSWER

A job (`harness.job`): `ChildOrder` is read, `ChildAnswer` written. The process leaves the machine's network before it
does anything else; cluster, client and dropped packets are all in the one that it has for itself, which ends with it.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec
import uvloop

from ..faults.seclusion import CannotSeclude, seclude
from ..harness.job import order_directory, read_order, write_answer
from ..harness.progress import no_progress
from .options import ChaosOptions
from .report import PhaseReport
from .script import Step
from .stage import run_steps

__all__ = ["ChildAnswer", "ChildOrder"]


class ChildOrder(msgspec.Struct, frozen=True):
    """The steps that the child goes through."""

    options: ChaosOptions
    steps: tuple[Step, ...]


class ChildAnswer(msgspec.Struct, frozen=True):
    """Its phases, or why it could not run them."""

    phases: list[PhaseReport]
    unproven: str | None = None


async def answer(order: ChildOrder, directory: Path) -> ChildAnswer:
    """Go through the steps; SIGTERM cancels them, so that the nodes are ended in order."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return ChildAnswer(await run_steps(order.options, order.steps, directory, no_progress))
    except CannotSeclude as error:
        return ChildAnswer([], str(error))


def main() -> None:
    order = read_order(ChildOrder)
    try:
        seclude()
    except CannotSeclude as error:
        found = ChildAnswer([], str(error))
    else:
        found = uvloop.run(answer(order, order_directory()))
    write_answer(found)


if __name__ == "__main__":
    main()
