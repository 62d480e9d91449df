"""The time until each end notices that the other was stopped, killed, cut off, or is busy.

    python -m dawnchorus.perf.liveness --busy 30

A node and a host, each a process of its own, that end with this one. Packets are dropped in a network namespace made
for it (`perf.faults.seclusion`), which takes root and nft; without them that part is left out. Each line's time counts
from the signal, or from when the packets stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop

from ..nodes.launcher import Launcher
from ..router.client.cluster import Cluster
from ..router.client.connect import connect
from ..router.dispatch.router import Router
from ..wire.cluster.topology_file import load_topology
from ..wire.errors import DawnchorusError
from ..wire.protocol.messages import StatusReply
from .faults.seclusion import CannotSeclude, packets_dropped, seclude, why_not
from .harness.child_process import child_process
from .harness.scratch import temporary_directory
from .harness.topologies import free_ports, one_node_text

__all__ = ["liveness"]

_PATIENCE_S: Final = 60.0
_STEP_S: Final = 0.01
_NODE: Final = "live-1"

_HOST = """
import asyncio, sys, time
from dawnchorus import connect
async def main():
    async with connect(sys.argv[1]) as cluster:
        await cluster.wake("a", deadline_s=60)
        print("there", flush=True)
        await asyncio.sleep(3_600)
asyncio.run(main())
"""

_TCP_HOST = """
import sys, time
from dawnchorus.wire.protocol.messages import PING, PROTOCOL, Hello, encode
from dawnchorus.wire.transport.sockets import SocketOwner
with SocketOwner() as owner:
    requests = owner.dealer(sys.argv[1])
    requests.send(encode(Hello(PROTOCOL, "", b"12345678", "")))
    requests.recv()
    print("there", flush=True)
    while True:
        requests.send(PING)
        requests.recv()
        time.sleep(0.2)
"""
"""A host that does not move to ipc."""


async def _until(condition: Callable[[], bool]) -> float:
    """Return how long it took until a condition held, in seconds; infinite if it never did."""
    began = time.monotonic()
    while time.monotonic() < began + _PATIENCE_S:
        if condition():
            return time.monotonic() - began
        await asyncio.sleep(_STEP_S)
    return float("inf")


async def _clients(cluster: Cluster) -> int:
    status = (await cluster.status(_PATIENCE_S))[_NODE]
    return status.clients if isinstance(status, StatusReply) else -1


async def _until_clients(cluster: Cluster, clients: int) -> float:
    """Return how long it took until the node had so many clients, in seconds; infinite if it never had."""
    began = time.monotonic()
    for _ in range(int(_PATIENCE_S / 0.05)):
        if await _clients(cluster) == clients:
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    return float("inf")


async def _node_is_noticed(path: Path, launcher: Launcher, port: int, *, secluded: bool) -> None:
    """Measure when a host notices that a node is stopped, killed or cut off."""
    router = Router()
    await router.connect(load_topology(path), _PATIENCE_S)

    async def say(what: str, again: str) -> None:
        print(f"  a node {what}: noticed after {await _until(lambda: not router.is_up(_NODE)):.2f} s", end="")
        print(f"; {again}", end="", flush=True)

    async def back() -> None:
        print(f" and found again after {await _until(lambda: router.is_up(_NODE)):.2f} s")

    try:
        os.kill(launcher.pids()[_NODE], signal.SIGSTOP)
        await say("that was stopped", "it went on,")
        os.kill(launcher.pids()[_NODE], signal.SIGCONT)
        await back()
        os.kill(launcher.pids()[_NODE], signal.SIGKILL)
        await say("that was killed", "it was started again,")
        await back()
        if secluded:
            async with packets_dropped(port):
                await say("that was cut off", "packets came through again,")
                await asyncio.sleep(10)
            await back()
    finally:
        router.close()


async def _host_is_killed(path: Path, directory: Path) -> None:
    """Measure when a node forgets a host that was killed."""
    async with connect(path) as cluster:
        await asyncio.sleep(6)  # what it had over TCP before it moved to ipc is forgotten
        before = await _clients(cluster)
        with child_process([sys.executable, "-c", _HOST, str(path)], log=directory / "host-killed") as host:
            await _until_clients(cluster, before + 1)
            await asyncio.sleep(6)
            host.kill()
            print(f"  a host that was killed: forgotten after {await _until_clients(cluster, before):.2f} s")


async def _host_is_cut_off(path: Path, directory: Path, port: int) -> None:
    """Measure when a node forgets a host that was cut off, as one sees who is not: over ipc."""
    async with connect(path) as cluster:
        await asyncio.sleep(6)
        before = await _clients(cluster)
        command = [sys.executable, "-c", _TCP_HOST, f"tcp://127.0.0.1:{port}"]
        with child_process(command, log=directory / "host-cut-off") as host:
            await _until_clients(cluster, before + 1)
            await asyncio.sleep(2)
            async with packets_dropped(port):
                took_s = await _until_clients(cluster, before)
            print(f"  a host over TCP that was cut off: forgotten after {took_s:.2f} s")
            host.kill()


def _be_busy(seconds: float) -> None:
    time.sleep(seconds)


async def _busy_host(path: Path, busy_s: float) -> None:
    async with connect(path) as cluster:
        waking = [cluster.wake("a", deadline_s=busy_s + _PATIENCE_S) for _ in range(100)]
        saving = asyncio.ensure_future(cluster.save("b", {"session": 1}, deadline_s=busy_s + _PATIENCE_S))
        await asyncio.sleep(0)
        _be_busy(busy_s)
        complete = sum([(await state).complete for state in waking])
        await saving
        began = time.monotonic()
        again = (await cluster.wake("a", deadline_s=_PATIENCE_S)).complete
        next_ms = (time.monotonic() - began) * 1_000
        print(
            f"  a host whose loop was busy for {busy_s:g} s: {complete} of {len(waking)} wakes under way were complete",
            end="",
        )
        print(f", its save was acknowledged, the next wake took {next_ms:.1f} ms, complete: {again}")


async def liveness(busy_s: float, *, secluded: bool) -> None:
    """Measure and print all of it, over TCP and over ipc."""
    for ipc in (False, True):
        print("over ipc" if ipc else "over TCP")
        with temporary_directory() as directory:
            path, port = directory / "topology.toml", free_ports(1)[0]
            path.write_text(one_node_text("liveness", port, ipc=ipc))
            async with Launcher(path) as launcher:
                async with connect(path) as cluster:
                    await cluster.save("a", {"session": "asleep"})
                await _node_is_noticed(path, launcher, port, secluded=secluded and not ipc)
                await _host_is_killed(path, directory)
                if secluded and ipc:
                    await _host_is_cut_off(path, directory, port)
                await _busy_host(path, busy_s)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dawnchorus.perf.liveness", description=__doc__)
    parser.add_argument("--busy", type=float, default=30.0, help="seconds for which a host is busy")
    given = parser.parse_args()
    reason = why_not()
    try:
        if reason is None:
            seclude()
    except CannotSeclude as error:
        reason = str(error)
    if reason is not None:
        print(f"cutting off is not measured: {reason}")
    try:
        uvloop.run(liveness(given.busy, secluded=reason is None))
    except DawnchorusError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
