"""Many clients of one node: they all connect and wake, then many come and go each second; what the node keeps of them.

    python -m dawnchorus.perf.crowd --clients 1000 --each-second 200 --seconds 30

The clients are real ones, all in this process, each with its own context and connection. Bounded by its arguments; the
node is a child that ends with this process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Final

import uvloop

from ..nodes.launcher import Launcher
from ..router.client.cluster import Cluster
from ..router.client.connect import connect
from ..wire.descriptors import raise_limit
from ..wire.errors import DawnchorusError
from .harness.child_process import anonymous_bytes
from .harness.scratch import temporary_directory
from .harness.topologies import free_ports, one_node_text

__all__ = ["crowd"]

_DEADLINE_S: Final = 60.0
"""Long: what is measured is whether it works, and what stays."""

_FORGET_S: Final = 10.0
"""How long a node may take to forget clients that have gone; it looks about once a second and needs four looks."""


class _Crowd:
    """The node as it is now, and what became of the clients."""

    def __init__(self, path: Path, pid: int) -> None:
        self._path = path
        self._pid = pid
        self.failures: list[str] = []

    def report(self, when: str) -> None:
        descriptors = len(os.listdir(f"/proc/{self._pid}/fd"))
        print(f"{when}: the node has {descriptors:,} descriptors and {anonymous_bytes(self._pid) / 2**20:.1f} MiB")

    async def come(self) -> Cluster | None:
        """Connect one client and wake an agent; None where that failed."""
        cluster = connect(self._path, connect_deadline_s=_DEADLINE_S)
        try:
            await cluster.__aenter__()
            state = await cluster.wake("a", deadline_s=_DEADLINE_S)
            if state["session"] != "asleep":
                self.failures.append("a wrong value")
        except DawnchorusError as error:
            self.failures.append(str(error))
            await cluster.__aexit__(None, None, None)
            return None
        return cluster

    async def come_and_go(self) -> None:
        cluster = await self.come()
        if cluster is not None:
            await cluster.__aexit__(None, None, None)


async def crowd(clients: int, each_second: int, seconds: int, directory: Path) -> int:
    """Run it, print what came of it, and return how many clients failed."""
    raise_limit()
    path = directory / "topology.toml"
    path.write_text(one_node_text("crowd", free_ports(1)[0]))
    async with Launcher(path) as launcher:
        async with connect(path) as cluster:
            await cluster.save("a", {"session": "asleep"})
        seen = _Crowd(path, launcher.pids()["live-1"])
        seen.report("before")

        began = time.monotonic()
        there = [one for one in await asyncio.gather(*[seen.come() for _ in range(clients)]) if one is not None]
        took_s = time.monotonic() - began
        print(f"{len(there):,} of {clients:,} clients connected and woke an agent in {took_s:.1f} s")
        seen.report("with all of them connected")
        await asyncio.gather(*[one.__aexit__(None, None, None) for one in there])
        await asyncio.sleep(_FORGET_S)
        seen.report(f"{_FORGET_S:g} s after they went")

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(each_second * seconds):
                await asyncio.sleep(max(0.0, began + number / each_second - time.monotonic()))
                group.create_task(seen.come_and_go())
        took_s = time.monotonic() - began
        print(f"{each_second * seconds:,} clients came, woke an agent and went within {took_s:.1f} s")
        await asyncio.sleep(_FORGET_S)
        seen.report(f"{_FORGET_S:g} s after the last")
    print(f"{len(seen.failures)} failed{''.join(f'; {reason}' for reason in sorted(set(seen.failures)))}")
    return len(seen.failures)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dawnchorus.perf.crowd", description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--each-second", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=30)
    given = parser.parse_args()
    with temporary_directory() as directory:
        return min(1, uvloop.run(crowd(given.clients, given.each_second, given.seconds, directory)))


if __name__ == "__main__":
    raise SystemExit(_main())
