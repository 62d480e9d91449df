"""The launcher: one process per node of topology.toml, watched, and started again when one dies.

    starting -> serving -> (dies) -> restarting -> starting -> ...
    starting -> restarting         corrupt data ended it (once): see nodes.crash_record
    starting -> failed             it ended before it ever served: the entire start fails, with the node's last log line
    any      -> stopped            as asked

A node's standard input is a pipe that the launcher holds open: if the launcher dies, however it dies, the pipe ends and
so does the node. Its first line is the start order (`nodes.start_order`): the topology file is read once, so that all
nodes serve the same topology until `up` is started again. Standard output has one line, the announcement that the node
serves; standard error its log, which is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import orjson

from ..wire.cluster.control_store import establish_placement
from ..wire.cluster.file_control_store import FileControlStore
from ..wire.cluster.restore_marker import require_no_restore
from ..wire.cluster.topology import NodeSpec, Topology, require_local_endpoints
from ..wire.cluster.topology_file import load_topology
from ..wire.errors import LaunchError
from .crash_record import CRASH_CODES
from .ends import EXIT_NOT_STARTED
from .neighbours import require_alone
from .shard_table import any_shard_on_disk, locked_directory
from .start_order import NEW_CLUSTER, StartOrder, encode_order, order_for
from .store_engines import require_engines

__all__ = ["Launcher", "NodeEvent", "shards_announced"]

_START_SECONDS: Final = 30.0
"""How long a node may take until it serves; opening 48 shards takes 15 ms, a cold disk seconds."""

_STOP_SECONDS: Final = 4.0
"""How long a node may take to end before it is killed; `up` promises an end within five."""

_RESTART_FIRST_SECONDS: Final = 0.05
_RESTART_LONGEST_SECONDS: Final = 10.0
"""A node that died is started again at once, then after twice the pause each time; one that served for a while counts
as well, and begins with the first pause."""

_WELL_SECONDS: Final = 10.0

_LINE_BYTES_MAX: Final = 1 << 20


class NodeEvent(msgspec.Struct, frozen=True):
    """An event of a node. `state`: starting, serving, restarting, failed, stopped; or log, with a line of its.

    While a node is restarted, `detail` says how it ended: by which signal, and its last log line.
    """

    node: str
    state: str
    endpoint: str
    pid: int = 0
    restarts: int = 0
    shards: int = 0
    detail: str = ""
    log: dict[str, Any] | None = None


@dataclass(slots=True)
class _NodeProcess:
    spec: NodeSpec
    state: str = "starting"
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    shards: int = 0
    last_words: str = ""
    ended: str = ""
    served: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None

    @property
    def last_time(self) -> str:
        return f"last time {self.ended}" if self.ended else ""


class Launcher:
    """All nodes of a topology file, as processes of this one.

    `async with Launcher(path):` starts them, waits until all serve, and stops them at the end.
    """

    def __init__(
        self, topology_path: str | os.PathLike[str], *, on_event: Callable[[NodeEvent], None] | None = None
    ) -> None:
        """Read the topology; nothing is started.

        Raises:
            TopologyError: the file is wrong.
        """
        self._path = Path(topology_path).resolve()
        self.topology: Topology = load_topology(self._path)
        self._on_event = on_event
        self._nodes = {name: _NodeProcess(spec) for name, spec in self.topology.nodes.items()}
        self._order = b""
        self._stopping = asyncio.Event()
        self._resources = contextlib.ExitStack()

    async def start(self) -> None:
        """Start every node and wait until all serve.

        Raises:
            DataDirectoryError: another launcher runs on this data, or a restore was interrupted there.
            PlacementError: the data contradicts the topology, or nodes serve the cluster from another place.
            LaunchError: a node failed or did not come up; the others are stopped again.
        """
        require_local_endpoints(self.topology)
        require_engines(self.topology, self.topology.stores, self._path)
        require_no_restore(self.topology.data_dir)
        await self._require_alone()
        self._resources.enter_context(locked_directory(Path(self.topology.data_dir)))
        try:
            self._order = encode_order(await self._establish())
            for node in self._nodes.values():
                node.watch = asyncio.create_task(self._watch(node))
            await asyncio.gather(*(self._require_serving(node) for node in self._nodes.values()))
        except BaseException:
            await self.stop()
            raise

    async def _require_alone(self) -> None:
        await asyncio.to_thread(require_alone, self.topology, self.topology.nodes)

    async def _establish(self) -> StartOrder:
        """Return the start order for every node: for the existing cluster, or for one that is made and logged now."""
        control = FileControlStore.in_directory(self.topology.data_dir)
        is_new = await control.read() is None
        placement = await establish_placement(
            self.topology, control, lambda: any_shard_on_disk(self.topology), before_making=self._require_alone
        )
        if is_new and self._on_event is not None:
            log = {"level": "warning", "event": NEW_CLUSTER, "cluster_uuid": placement.cluster_uuid}
            detail = self.topology.data_dir
            self._on_event(NodeEvent("up", "log", "", detail=detail, log={**log, "detail": detail}))
        return order_for(self.topology, placement.cluster_uuid)

    async def stop(self) -> None:
        """End every node: ask first, kill after four seconds."""
        self._stopping.set()
        watches = [node.watch for node in self._nodes.values() if node.watch is not None]
        for node in self._nodes.values():
            _ask_to_end(node.process)
        if watches:
            _, late = await asyncio.wait(watches, timeout=_STOP_SECONDS)
            for node in self._nodes.values():
                if late and node.process is not None and node.process.returncode is None:
                    node.process.kill()
            await asyncio.gather(*watches, return_exceptions=True)
        self._resources.close()

    async def wait(self) -> None:
        """Wait until every node has ended: after `stop`, in another task, or never."""
        await asyncio.gather(*(node.watch for node in self._nodes.values() if node.watch is not None))

    def pids(self) -> dict[str, int]:
        """Return the process id of each node that runs."""
        return {
            name: node.process.pid
            for name, node in self._nodes.items()
            if node.process is not None and node.process.returncode is None
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _require_serving(self, node: _NodeProcess) -> None:
        assert node.watch is not None
        serving = asyncio.create_task(node.served.wait())
        await asyncio.wait({serving, node.watch}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            return
        serving.cancel()
        why = node.ended or f"it did not serve within {_START_SECONDS:.0f} s"
        raise LaunchError(f"node {node.spec.name!r}: {why}")

    async def _watch(self, node: _NodeProcess) -> None:
        """Run one node again and again until the launcher stops or the node fails at its first start."""
        pause = _RESTART_FIRST_SECONDS
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            code = await self._run_once(node)
            if self._stopping.is_set():
                break
            node.ended = _describe_end(code, node.last_words)
            if not node.served.is_set() and (node.restarts or code not in CRASH_CODES):
                # An error or a crash that ends a node before it ever served will do so again. But a node that
                # corrupt data has ended knows that at its next start, and does not open the corrupt shards.
                self._tell(node, "failed", node.ended)
                return
            if loop.time() - began > _WELL_SECONDS:
                pause = _RESTART_FIRST_SECONDS
            node.restarts += 1
            self._tell(node, "restarting", f"starts again in {pause:.2f} s: {node.ended}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 2, _RESTART_LONGEST_SECONDS)
        self._tell(node, "stopped")

    async def _run_once(self, node: _NodeProcess) -> int:
        command = [sys.executable, "-m", "dawnchorus.tools.main", "node", node.spec.name, "--launched"]
        process = await asyncio.create_subprocess_exec(
            *command,
            "--topology",
            str(self._path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            # A Ctrl-C at the terminal reaches the launcher alone, which then ends the nodes in order.
            start_new_session=True,
        )
        node.process = process
        node.last_words = ""
        self._tell(node, "starting", node.last_time)
        if self._stopping.is_set():  # asked to while the process was being made
            _ask_to_end(process)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        await asyncio.gather(
            self._give_order(process.stdin),
            self._read_announcements(node, process.stdout),
            self._read_log(node, process.stderr),
        )
        return await process.wait()

    async def _give_order(self, stdin: asyncio.StreamWriter) -> None:
        # It may have died already: uvloop calls that a RuntimeError ("the handler is closed").
        with contextlib.suppress(ConnectionError, RuntimeError):
            stdin.write(self._order)
            await stdin.drain()

    async def _read_announcements(self, node: _NodeProcess, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            shards = shards_announced(line, node.spec.name)
            if shards is None:  # printed by a library, or by a user's own code in it: no announcement that it serves
                text = line.decode(errors="replace").rstrip()
                self._tell(node, "log", node.last_words, {"level": "warning", "event": "said", "detail": text})
                continue
            node.shards = shards
            node.served.set()
            self._tell(node, "serving", node.last_time)

    async def _read_log(self, node: _NodeProcess, stderr: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stderr.readline()
            except ValueError:
                continue  # longer than _LINE_BYTES_MAX: the reader has dropped it
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            try:
                log = orjson.loads(text)
                node.last_words = str(log.get("detail") or log["event"])
            except (orjson.JSONDecodeError, KeyError, AttributeError):
                log, node.last_words = {"level": "error", "event": text}, text
            self._tell(node, "log", node.last_words, log)

    def _tell(self, node: _NodeProcess, state: str, detail: str = "", log: dict[str, Any] | None = None) -> None:
        if state != "log":
            node.state = state
        pid = node.process.pid if node.process is not None else 0
        if self._on_event is None:
            return
        self._on_event(
            NodeEvent(node.spec.name, state, node.spec.endpoint, pid, node.restarts, node.shards, detail, log)
        )


def shards_announced(line: bytes, node: str) -> int | None:
    """Return how many shards a node serves, as a line of its standard output announces; None for any other line."""
    try:
        said = orjson.loads(line)
        if said["event"] == "serving" and said["node"] == node:
            return int(said["shards"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        pass  # it is no announcement
    return None


def _ask_to_end(process: asyncio.subprocess.Process | None) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        if process.stdin is not None:  # if SIGTERM is ignored, as this process may have inherited it and passed it on
            process.stdin.close()


def _describe_end(code: int, last_words: str) -> str:
    """Return how a process ended, with its last line on standard error; only the line if its start was rejected."""
    if code == EXIT_NOT_STARTED and last_words:
        return last_words
    how = f"ended with exit code {code}"
    if code < 0:
        try:
            how = f"was ended by {signal.Signals(-code).name} ({signal.strsignal(-code)})"
        except ValueError:  # a real-time signal has no name
            how = f"was ended by signal {-code}"
    return f"it {how}" + (f"; its last line: {last_words}" if last_words else "")
