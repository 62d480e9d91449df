"""Clusters of real processes on free ports of loopback: their topology files, and control of their nodes."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from pathlib import Path

import psutil

from dawnchorus.nodes.launcher import Launcher, NodeEvent
from dawnchorus.perf.harness.topologies import free_ports

__all__ = ["DEFAULT_NODES", "RunningCluster", "eventually", "running", "runtime_directory", "write_topology"]

DEFAULT_NODES: Mapping[str, Sequence[str]] = {"identity-1": ["identity"], "live-1": ["live"], "archive-1": ["archive"]}

_KINDS = """
[fragments.profile]
store = "identity"
required = true
[fragments.preference]
store = "identity"
fallback = { language = "en", tags = [] }
[fragments.session]
store = "live"
[fragments.context]
store = "live"
[fragments.history]
store = "archive"
"""

_PATIENCE_SECONDS = 20.0
"""How long a test waits for events without a time limit of their own, on a machine that others use too."""


def write_topology(
    directory: Path,
    *,
    name: str = "test",
    shards: int = 4,
    nodes: Mapping[str, Sequence[str]] = DEFAULT_NODES,
    kinds: str = _KINDS,
    ports: Sequence[int] | None = None,
    sections: str = "",
    cluster_keys: str = "",
) -> Path:
    """Write a topology file: the default's kinds and stores, few shards, on free ports.

    `sections` are further ones, `cluster_keys` further lines of [cluster].
    """
    stores = list(dict.fromkeys(store for listed in nodes.values() for store in listed))
    lines = ["[cluster]", f'name = "{name}"', 'data_dir = "data"', cluster_keys]
    lines += [f"[stores.{store}]\nshards = {shards}" for store in stores]
    lines += [kinds, sections]
    for (node, listed), port in zip(nodes.items(), ports or free_ports(len(nodes)), strict=True):
        shown = ", ".join(f'"{store}"' for store in listed)
        lines.append(f'[[nodes]]\nname = "{node}"\nendpoint = "tcp://127.0.0.1:{port}"\nstores = [{shown}]')
    path = directory / "topology.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def runtime_directory() -> Generator[Path]:
    """Let nodes started here keep their ipc sockets in a directory of their own, with a short path; gone at the end."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="dc-", dir="/tmp") as directory:
        os.environ["XDG_RUNTIME_DIR"] = directory
        try:
            yield Path(directory)
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before


class RunningCluster:
    """A launcher with its nodes, and every event that it reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[NodeEvent] = []
        self.launcher = Launcher(path, on_event=self.events.append)

    def endpoint(self, node: str) -> str:
        """Return a node's TCP endpoint."""
        return self.launcher.topology.nodes[node].endpoint

    def signal(self, node: str, number: signal.Signals) -> int:
        """Send a node's process a signal; return its process id."""
        pid = self.launcher.pids()[node]
        os.kill(pid, number)
        return pid

    async def kill(self, node: str) -> None:
        """End a node with SIGKILL, and return when its process is gone."""
        pid = self.signal(node, signal.SIGKILL)
        await eventually(lambda: self.launcher.pids().get(node) != pid)

    def states(self, node: str) -> list[str]:
        """Return the states reported of a node, in order, without its log."""
        return [event.state for event in self.events if event.node == node and event.state != "log"]

    async def served_again(self, node: str, starts: int) -> None:
        """Wait until a node serves for the `starts`-th time."""
        await eventually(lambda: self.states(node).count("serving") >= starts)


@contextlib.asynccontextmanager
async def running(path: Path) -> AsyncGenerator[RunningCluster]:
    """Start all nodes of a topology file, and stop them at the end."""
    cluster = RunningCluster(path)
    async with cluster.launcher:
        yield cluster


async def eventually(condition: Callable[[], bool], seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until a condition holds; fail if it never does."""
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while not condition():
        assert clock() < end, f"did not come true within {seconds:g} s"
        await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return whether a process runs: it exists, and is no zombie that has not been reaped yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def anonymous_bytes(pid: int) -> int:
    """Return RssAnon of a process (proc_pid_status(5)): without the pages of LMDB's files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1_024
    raise AssertionError(f"process {pid} shows no RssAnon")
