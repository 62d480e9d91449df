"""Savers in a process of their own, as many saves as go, until it is told to end; started by `save`, never by hand.

    python -m dawnchorus.perf.saves.load ORDER ANSWER

A job (`harness.job`): `LoadOrder` is read, `LoadAnswer` written once when saves are flowing, and again at the end
(SIGTERM). In a process of its own, because single wakes are timed meanwhile in another: what they wait for is then the
nodes, not the savers' event loop.
"""

from __future__ import annotations

import asyncio
import signal
import time

import msgspec
import uvloop

from ...router.client.cluster import Cluster
from ...router.client.connect import connect
from ...wire.process_tuning import tune_process
from ..harness.job import read_order, write_answer
from .savers import SAVED_KIND

__all__ = ["LoadAnswer", "LoadOrder"]


class LoadOrder(msgspec.Struct, frozen=True):
    """Save these agents of this cluster, a task each, with values of so many bytes."""

    topology: str
    ids: list[str]
    value_bytes: int


class LoadAnswer(msgspec.Struct, frozen=True):
    """Acknowledged so far, and in how many seconds."""

    saves: int
    seconds: float


async def load(order: LoadOrder) -> None:
    """Save until SIGTERM."""
    stopping, flowing = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    value = b"\xa5" * order.value_bytes
    done = 0

    async def work(cluster: Cluster, agent_id: str) -> None:
        nonlocal done
        while not stopping.is_set():
            await cluster.save(agent_id, {SAVED_KIND: value})
            done += 1
            if done >= len(order.ids):
                flowing.set()
        flowing.set()

    async with connect(order.topology) as cluster:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as savers:
            for agent_id in order.ids:
                savers.create_task(work(cluster, agent_id))
            await flowing.wait()
            write_answer(LoadAnswer(done, time.perf_counter() - started))
        write_answer(LoadAnswer(done, time.perf_counter() - started))


def main() -> None:
    order = read_order(LoadOrder)
    tune_process()
    uvloop.run(load(order))


if __name__ == "__main__":
    main()
