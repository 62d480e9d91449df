"""Hosts and nodes that are busy, stopped or gone: real processes, told apart by both ends.

How silence is judged is tested by hand-driven ticks (tests/wire/transport/test_liveness.py,
tests/wire/transport/test_connection.py, tests/wire/transport/test_reply_queues.py); here it is seen that processes and
kernels behave as is assumed there.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from dawnchorus import connect
from dawnchorus.nodes.node import FragmentNode
from tests.support.clusters import RunningCluster, eventually, running, write_topology
from tests.support.internals import is_up, sendings
from tests.support.raw_nodes import NODE, RawClient, make_topology, served

LONG_S = 60.0
BUSY_S = 6.0
"""Longer than it takes until a peer counts as silent."""


@pytest.fixture(scope="module")
async def nodes(ipc_directory: object, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RunningCluster]:
    """Three nodes that may be stopped; every test resumes them."""
    async with running(write_topology(tmp_path_factory.mktemp("liveness"))) as cluster:
        async with connect(cluster.path) as client:
            await client.save("a", {"profile": 1, "session": 2, "history": 3})
        yield cluster


@contextlib.contextmanager
def stopped(cluster: RunningCluster, node: str) -> Generator[None]:
    cluster.signal(node, signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.signal(node, signal.SIGCONT)


def be_busy(seconds: float) -> None:
    """Keep this process's loop from doing anything else."""
    time.sleep(seconds)


async def test_stopped_node_becomes_silent_and_answers_after_resuming(
    nodes: RunningCluster,
) -> None:
    async with connect(nodes.path) as cluster:
        await cluster.wake("a")
        with stopped(nodes, "archive-1"):
            asked = cluster.wake("a", deadline_s=LONG_S)
            began = time.monotonic()
            await eventually(lambda: not is_up(cluster, "archive-1"))
            assert time.monotonic() - began > 2.5, "a moment without a word is no silence"
            later = cluster.wake("a", deadline_s=LONG_S)
            await asyncio.sleep(0.1)
        assert (await asked).complete
        assert (await later).complete
        assert is_up(cluster, "archive-1")
        assert sendings(cluster).all == sendings(cluster).needed, "it was never marked down: nothing is asked twice"


async def test_busy_host_loses_nothing_and_blames_no_node(nodes: RunningCluster) -> None:
    async with connect(nodes.path) as cluster:
        await cluster.wake("a")
        waking = [cluster.wake("a", deadline_s=LONG_S) for _ in range(10)]
        await asyncio.sleep(0)  # they are sent
        be_busy(BUSY_S)
        assert all([(await state).complete for state in waking])
        assert all(is_up(cluster, node) for node in cluster.topology.nodes)
        assert sendings(cluster).all == sendings(cluster).needed
        for _ in range(3):
            await asyncio.sleep(0.5)
            assert (await cluster.wake("a", deadline_s=LONG_S)).complete
        assert all(is_up(cluster, node) for node in cluster.topology.nodes)


_ASKER = """
import sys, zmq
from dawnchorus.nodes.node import FragmentNode
from dawnchorus.wire.protocol.messages import PROTOCOL, Fetch, FetchSection, Hello, encode
asker = zmq.Context().socket(zmq.DEALER)
asker.setsockopt(zmq.RCVHWM, 4)
asker.connect(sys.argv[1])
asker.send(encode(Hello(PROTOCOL, "", b"asker", "")))
asker.recv()
print("welcome", flush=True)
sys.stdin.readline()
for number in range(1, 301):
    sections = [FetchSection("live", shard, 1, [b"large"]) for shard in (0, 1)]
    asker.send(encode(Fetch(number, 60_000_000, 0, None, sections)))
print("asked", flush=True)
sys.stdin.readline()
"""


def waiting(node: FragmentNode) -> int:
    """Return how many requests wait because their peers take no reply."""
    queue = node.server._queue._queue  # pyright: ignore[reportPrivateUsage]
    return sum([queue.waiting(peer) for peer in node.server.peers.blocked])


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_dropping_replies_of_stopped_client_disturbs_no_other(
    tmp_path: Path, ipc_directory: Path, transport: str
) -> None:
    ipc = f"ipc://{ipc_directory}/node"
    async with served(make_topology(tmp_path), NODE, ipc=ipc) as serving, RawClient(serving.endpoint) as client:
        await client.hello()
        await client.commit({b"large": bytes(1_000_000)})
        endpoint = ipc if transport == "ipc" else serving.endpoint
        asker = subprocess.Popen(
            [sys.executable, "-c", _ASKER, endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert asker.stdin is not None
        assert asker.stdout is not None
        try:
            assert await asyncio.to_thread(asker.stdout.readline) == "welcome\n"
            before = serving.node.counters.dropped_replies  # on a slow machine it may be forgotten before it is stopped
            asker.stdin.write("\n")
            asker.stdin.flush()
            assert await asyncio.to_thread(asker.stdout.readline) == "asked\n"  # and reads nothing of what comes
            # Its requests leave its process a little later, and no more once it is stopped: so few that the kernel
            # would take all the replies.
            await eventually(lambda: waiting(serving.node) > 200 or serving.node.counters.dropped_replies > before)
            os.kill(asker.pid, signal.SIGSTOP)
            await eventually(lambda: serving.node.counters.dropped_replies > before)
            assert (await client.status()).counters["internal_errors"] == 0
        finally:
            asker.kill()
            asker.wait()
            asker.stdin.close()
            asker.stdout.close()
