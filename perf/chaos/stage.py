"""One cluster of real processes, its clients, and the faults that are done to it, phase after phase.

Two clients: one with the nodes' own endpoints, and one to which a proxy stands in for the node that the faults are
meant for. Both stay open to the end, so that a phase sees what the one before it has left behind in the same client;
`after` goes on with the client of the phase before it.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ...nodes.launcher import Launcher, NodeEvent
from ...router.client.cluster import Cluster
from ...router.client.connect import connect
from ...wire.cluster.topology import parse_endpoint
from ..faults.proxy import TcpProxy, delayed, flapping, tcp_proxy
from ..faults.seclusion import packets_dropped
from ..faults.signals import killed, stopped
from ..harness.measure import settled_memory
from ..harness.progress import Progress
from ..harness.sleeping_cluster import fill
from ..harness.topologies import default_text, free_ports, node_count
from ..harness.workload import SyntheticAgents
from .load import Load, LoadRun, last_incomplete_ms, own_memory
from .options import ChaosOptions
from .overload import overload
from .report import NOTHING, Healing, MemoryUse, PhaseReport
from .script import Step

__all__ = ["run_steps"]

REPLY_DELAY_S: Final = 0.2
FLAP_SECONDS: Final = 0.3
DYING_SECONDS: Final = 1.0

_WARM_UP_SECONDS: Final = 1.0
"""Before the first phase: what starts lazily, and memory that a client needs anyway; an ordinary phase's if shorter."""

_SAVE_DEADLINE_MS: Final = 60_000

_KILLS_MAX: Final = 10_000
"""More than any phase is long."""


async def run_steps(
    options: ChaosOptions, steps: Sequence[Step], directory: Path, progress: Progress
) -> list[PhaseReport]:
    """Start a cluster in the directory, put the agents to sleep, go through the steps, and stop it."""
    workload = SyntheticAgents(options.agents, options.value_bytes, options.seed)
    order = random.Random(options.seed).sample(range(options.agents), options.agents)
    load = Load(workload, order, options.deadline_ms / 1_000)
    path = _write_topology(options, directory)
    nodes = _Nodes()
    progress("start the cluster", 0, 1)
    async with Launcher(path, on_event=nodes.handle_event) as launcher, connect(path) as cluster:
        progress("start the cluster", 1, 1)
        await fill(cluster, workload, progress)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(settled_memory())
            stage = _Stage(options, load, launcher, nodes, cluster, stack, directory, progress)
            await load.run(cluster, options.rate, min(_WARM_UP_SECONDS, options.seconds))
            return [await stage.play(step) for step in steps]


def _write_topology(options: ChaosOptions, directory: Path) -> Path:
    """Write the default topology over TCP only, so that faults of TCP have an effect; return its path."""
    endpoints = [f"tcp://127.0.0.1:{port}" for port in free_ports(node_count("default"))]
    path = directory / "topology.toml"
    path.write_text(default_text("chaos", "data", options.deadline_ms, _SAVE_DEADLINE_MS, endpoints, ipc=False))
    return path


class _Nodes:
    """Which nodes serve, as the launcher tells it."""

    def __init__(self) -> None:
        self.serving: dict[str, int] = {}

    def handle_event(self, event: NodeEvent) -> None:
        """Take in what the launcher tells."""
        if event.state == "serving":
            self.serving[event.node] = event.pid
        elif event.state != "log":
            self.serving.pop(event.node, None)


class _Offered:
    """A load that has run, and the memory before it."""

    def __init__(self, before: int, run: LoadRun, seconds: float) -> None:
        self.before = before
        self.run = run
        self.seconds = seconds


class _Stage:
    """The phases, each by its name."""

    def __init__(
        self,
        options: ChaosOptions,
        load: Load,
        launcher: Launcher,
        nodes: _Nodes,
        cluster: Cluster,
        stack: contextlib.AsyncExitStack,
        directory: Path,
        progress: Progress,
    ) -> None:
        self._options = options
        self._node = options.node
        self._load = load
        self._launcher = launcher
        self._nodes = nodes
        self._direct = self._client = cluster
        self._stack = stack
        self._directory = directory
        self._progress = progress
        self._proxied: tuple[TcpProxy, Cluster] | None = None
        self._ended_ns = time.monotonic_ns()
        self._ended = "after the start"
        self._phases: Mapping[str, Callable[[float], Awaitable[PhaseReport]]] = {
            "healthy": self._healthy,
            "stopped": self._stopped,
            "late": self._late,
            "killed": self._killed,
            "dying": self._dying,
            "flapping": self._flapping,
            "cut-off": self._cut_off,
            "overload": self._overload,
            "after": self._after,
        }

    async def play(self, step: Step) -> PhaseReport:
        """Go through one phase."""
        self._progress(step.phase, 0, 1)
        report = await self._phases[step.phase](step.seconds)
        self._progress(step.phase, 1, 1)
        return report

    async def _healthy(self, seconds: float) -> PhaseReport:
        self._client = self._direct
        return self._report("healthy", await self._offer(seconds), NOTHING)

    async def _after(self, seconds: float) -> PhaseReport:
        since_ns, since = self._ended_ns, self._ended
        offered = await self._offer(seconds)
        healing = Healing(since, last_incomplete_ms(offered.run, since_ns))
        return self._report("after", offered, NOTHING, healing)

    async def _stopped(self, seconds: float) -> PhaseReport:
        self._client = self._direct
        async with stopped([self._launcher.pids()[self._node]], self._directory):
            offered = await self._offer(seconds)
        self._end("after SIGCONT")
        return self._report("stopped", offered, f"{self._node} was stopped by SIGSTOP")

    async def _late(self, seconds: float) -> PhaseReport:
        proxy = await self._through_proxy()
        async with delayed(proxy, REPLY_DELAY_S):
            offered = await self._offer(seconds)
        self._end("after the delay")
        return self._report("late", offered, f"the replies of {self._node} came {REPLY_DELAY_S * 1_000:g} ms late")

    async def _killed(self, seconds: float) -> PhaseReport:
        self._client = self._direct
        # In the middle of the load, so that wakes are under way.
        async with killed(self._serving, first_after_s=seconds / 5, every_s=seconds, most=1) as kills:
            offered = await self._offer(seconds)
        # The load was long enough for it, unless the node was not up at all.
        healing = None
        if kills.at_ns:
            self._end("after the kill", kills.at_ns[-1])
            healing = Healing(self._ended, last_incomplete_ms(offered.run, self._ended_ns))
        return self._report("killed", offered, f"{self._node} was killed by SIGKILL and started again", healing)

    async def _dying(self, seconds: float) -> PhaseReport:
        self._client = self._direct
        every_s = min(DYING_SECONDS, seconds / 3)
        async with killed(self._serving, first_after_s=every_s / 2, every_s=every_s, most=_KILLS_MAX) as kills:
            offered = await self._offer(seconds)
        if kills.at_ns:
            self._end("after the last kill", kills.at_ns[-1])
        words = f"{self._node} was killed {len(kills.at_ns)} times, every {every_s:g} s or as soon as it was up again"
        return self._report("dying", offered, words)

    async def _flapping(self, seconds: float) -> PhaseReport:
        proxy = await self._through_proxy()
        async with flapping(proxy, FLAP_SECONDS) as closings:
            offered = await self._offer(seconds)
        self._end("after the last opening")
        words = f"{closings[0]} times the connection to {self._node} was broken and rejected for 300 ms"
        return self._report("flapping", offered, words)

    async def _cut_off(self, seconds: float) -> PhaseReport:
        self._client = self._direct
        _host, port = parse_endpoint(self._direct.topology.nodes[self._node].endpoint)
        async with packets_dropped(port):
            offered = await self._offer(seconds)
        self._end("after packets came through again")
        return self._report("cut-off", offered, f"every packet from and to {self._node} was dropped")

    async def _overload(self, seconds: float) -> PhaseReport:
        self._client = self._direct
        pids = list(self._launcher.pids().values())
        report = await overload(self._load, self._client, pids, seconds, self._directory, self._progress)
        self._end("after the throttle")
        return report

    async def _offer(self, seconds: float) -> _Offered:
        before = own_memory()
        return _Offered(before, await self._load.run(self._client, self._options.rate, seconds), seconds)

    def _report(self, phase: str, offered: _Offered, words: str, healing: Healing | None = None) -> PhaseReport:
        run = offered.run
        wakes = run.counts.counts(run.unsent)
        peak = max(offered.before, run.memory_peak)
        # Its records go before memory is looked at.
        del offered.run, run
        memory = MemoryUse(offered.before, peak, own_memory())
        return PhaseReport(phase, words, offered.seconds, self._options.rate, wakes, memory, healing)

    def _end(self, words: str, at_ns: int | None = None) -> None:
        """Take note that a fault has ended, and when."""
        self._ended_ns = time.monotonic_ns() if at_ns is None else at_ns
        self._ended = words

    def _serving(self) -> int | None:
        return self._nodes.serving.get(self._node)

    async def _through_proxy(self) -> TcpProxy:
        """Go on with the client to which a proxy stands in for the node."""
        if self._proxied is None:
            topology = self._direct.topology
            spec = topology.nodes[self._node]
            _host, port = parse_endpoint(spec.endpoint)
            proxy = await self._stack.enter_async_context(tcp_proxy(port))
            nodes = {**topology.nodes, self._node: msgspec.structs.replace(spec, endpoint=proxy.endpoint)}
            through = msgspec.structs.replace(topology, nodes=nodes)
            cluster = await self._stack.enter_async_context(connect(through))
            self._proxied = proxy, cluster
            # The cost of a fresh client is not to be counted as that of a fault.
            await self._load.run(cluster, self._options.rate, min(_WARM_UP_SECONDS, self._options.seconds))
        proxy, self._client = self._proxied
        return proxy
