"""A client that wakes warm agents, one after the other, and times each wake; started by `cold`.

    python -m dawnchorus.perf.cold.waker ORDER ANSWER

It says so when the agents are warm, and answers with all times when the file named in the order is there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import msgspec
import uvloop

from ...router.client.connect import connect
from ..harness.job import read_order, write_answer
from ..harness.measure import WrongResult

__all__ = ["WakerOrder", "WakerTimes"]

_PAUSE_S = 0.001
"""Between two wakes: whoever wakes now and then, not a load of its own."""


class WakerOrder(msgspec.Struct, frozen=True):
    """Wake these agents of this cluster until the file `end` is there."""

    topology: str
    ids: list[str]
    end: str


class WakerTimes(msgspec.Struct, frozen=True):
    """When each wake began, in nanoseconds of the host's monotonic clock, and how long it took; [] until it ended."""

    began_ns: list[int] = []
    took_ns: list[int] = []


async def _wake(order: WakerOrder) -> WakerTimes:
    began: list[int] = []
    took: list[int] = []
    end = Path(order.end)
    async with connect(order.topology) as cluster:
        for _ in range(3):
            await cluster.wake_many(order.ids)
        write_answer(WakerTimes())
        for number, agent_id in enumerate(itertools.cycle(order.ids)):
            began.append(time.monotonic_ns())
            state = await cluster.wake(agent_id)
            took.append(time.monotonic_ns() - began[-1])
            if not state.complete:
                raise WrongResult(f"agent {agent_id} came back incomplete")
            if not number % 64 and end.exists():
                return WakerTimes(began, took)
            await asyncio.sleep(_PAUSE_S)
    raise AssertionError("the agents go round")


if __name__ == "__main__":
    write_answer(uvloop.run(_wake(read_order(WakerOrder))))
