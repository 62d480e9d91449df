"""A client that wakes agents, keeps 1 % of them, and says how much memory it had at each step; started by `memory`.

    python -m dawnchorus.perf.memory.client ORDER ANSWER

A job (`harness.job`): `ClientOrder` is read, `ClientMemory` written.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os

import msgspec
import uvloop

from ...router.client.connect import connect
from ..harness.child_process import anonymous_bytes
from ..harness.job import read_order, write_answer

__all__ = ["ClientMemory", "ClientOrder"]

KEEP_EVERY = 100


class ClientOrder(msgspec.Struct, frozen=True):
    """The client's work: wake these agents of this cluster, whose images have so many bytes together."""

    topology: str
    ids: list[str]
    image_bytes: int


class ClientMemory(msgspec.Struct, frozen=True):
    """RssAnon of the client in bytes."""

    image_bytes: int
    """of the agents that were woken: what they are measured by"""
    before: int
    """connected, one agent woken and let go"""
    woken: int
    """all agents just woken and held"""
    kept: int
    """one in a hundred kept, detached, the others let go"""
    kept_trimmed: int
    """the same after malloc_trim(3), which gives free pages between used ones back to the system"""


async def measure(order: ClientOrder) -> ClientMemory:
    """Wake, keep, and measure between."""
    async with connect(order.topology) as cluster:
        await cluster.wake(order.ids[0])
        before = _anonymous()
        states = await cluster.wake_many(order.ids)
        woken = _anonymous()
        kept_states = [state.detach() for state in states[::KEEP_EVERY]]
        del states
        # Frames that ZeroMQ or the loop may still hold for a turn are let go of as well.
        await asyncio.sleep(0.1)
        kept = _anonymous()
        _malloc_trim()
        kept_trimmed = _anonymous()
        assert all(state.complete for state in kept_states)
        return ClientMemory(order.image_bytes, before, woken, kept, kept_trimmed)


def _anonymous() -> int:
    gc.collect()
    return anonymous_bytes(os.getpid())


def _malloc_trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        pass  # not glibc: its allocator gives back what it does in its own time


def main() -> None:
    write_answer(uvloop.run(measure(read_order(ClientOrder))))


if __name__ == "__main__":
    main()
