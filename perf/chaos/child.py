"""The part of a script that needs a network of its own; started by `run`.

    python -m dawnchorus.perf.chaos.child ORDER ANSWER

Both are JSON files: `ChildOrder` is read, `ChildAnswer` is written. The process leaves the machine's network before it
does anything else; cluster, client and dropped packets are all in the one that it has for itself, which ends with it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from ..faults.seclusion import CannotSeclude, seclude
from ..harness.progress import no_progress
from .options import ChaosOptions
from .report import PhaseReport
from .script import Step
from .stage import run_steps

__all__ = ["ChildAnswer", "ChildOrder"]


class ChildOrder(msgspec.Struct, frozen=True):
    """What the child is to do."""

    options: ChaosOptions
    steps: tuple[Step, ...]


class ChildAnswer(msgspec.Struct, frozen=True):
    """What it found, or why it could not."""

    phases: list[PhaseReport]
    unproven: str | None = None


async def answer(order: ChildOrder, folder: Path) -> ChildAnswer:
    """Go through the steps; SIGTERM cancels them, so that the nodes are ended in order."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return ChildAnswer(await run_steps(order.options, order.steps, folder, no_progress))
    except CannotSeclude as error:
        return ChildAnswer([], str(error))


def main() -> None:
    order_path, answer_path = Path(sys.argv[1]), Path(sys.argv[2])
    order = msgspec.json.decode(order_path.read_bytes(), type=ChildOrder)
    try:
        seclude()
    except CannotSeclude as error:
        found = ChildAnswer([], str(error))
    else:
        found = uvloop.run(answer(order, order_path.parent))
    answer_path.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
