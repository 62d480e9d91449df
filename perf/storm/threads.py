"""The cost of the blocking face: wakes through `connect_sync` beside the same wakes in an event loop, in one process.

Each run measures, in alternation: one wake at a time from one thread and in the loop; then as many threads, and as many
workers in the loop, that each wake one agent after the other. Ratios are those of the medians over all runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from ...router.client.sync_cluster import SyncCluster, connect_sync
from ..harness.contest import Times, measure_runs, require_positive
from ..harness.measure import (
    State,
    Tail,
    Wakes,
    check_states,
    closed_loop,
    notes_on_process,
    settle,
    settled_memory,
    single_wakes,
)
from ..harness.progress import Progress, no_progress
from ..harness.report import Target, note_lines, ratios_table, table
from ..harness.scratch import temporary_directory
from ..harness.sleeping_cluster import sleeping_cluster
from ..harness.topologies import TopologyName
from ..harness.workload import SyntheticAgents

__all__ = ["ThreadsOptions", "ThreadsReport", "render_threads", "threads"]


class ThreadsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the measurement. The defaults take about 30 s on two cores."""

    agents: int = 10_000
    value_bytes: int = 512
    topology: TopologyName = "default"
    threads: int = 64
    """and workers in the loop"""
    runs: int = 5
    singles: int = 1000
    """wakes one at a time, of each kind, in each run"""
    closed_loop_s: float = 1.0
    """of each kind, in each run"""
    seed: int = 1
    directory: Path | None = None


class ThreadsRatios(msgspec.Struct, frozen=True):
    """Medians divided: `single` of times, `closed_loop` of speeds."""

    single: float
    closed_loop: float


class ThreadsReport(msgspec.Struct, frozen=True):
    """The result; encoded, the object that `dawnchorus perf threads --json` prints."""

    agents: int
    value_bytes: int
    topology: TopologyName
    threads: int
    runs: int
    single_us: Tail
    """one wake at a time in an event loop"""
    blocking_single_us: Tail
    """the same through `connect_sync`, from one thread"""
    closed_loop_per_s: float
    """wakes of as many workers in the loop"""
    blocking_closed_loop_per_s: float
    """wakes of the threads"""
    ratios: ThreadsRatios
    notes: list[str]


TARGETS = {"single": Target(1.35, None), "closed_loop": Target(0.4, None)}


async def threads(options: ThreadsOptions, progress: Progress = no_progress) -> ThreadsReport:
    """Measure; leaves no process and no file behind, however it ends."""
    require_positive(options, "threads", "runs", "singles")
    workload = SyntheticAgents(options.agents, options.value_bytes, options.seed)
    numbers = random.Random(options.seed)
    times = Times()
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_directory(options.directory))
        sleepers = await stack.enter_async_context(sleeping_cluster(options.topology, workload, directory, progress))
        blocking = connect_sync(sleepers.topology_path)
        await asyncio.to_thread(blocking.__enter__)
        stack.push_async_callback(asyncio.to_thread, blocking.close)
        stack.enter_context(settled_memory())
        cluster: Wakes = sleepers.cluster

        async def run(_number: int) -> None:
            agents = [numbers.randrange(options.agents) for _ in range(options.singles)]
            ids = [workload.ids[agent] for agent in agents]
            await settle()
            nanoseconds, states = await single_wakes(cluster, ids)
            times.add_ns("single", nanoseconds)
            check_states(states, agents, workload)
            await settle()
            nanoseconds, states = await asyncio.to_thread(_single_wakes, blocking, ids)
            times.add_ns("blocking_single", nanoseconds)
            check_states(states, agents, workload)
            await settle()
            rate, _ = await closed_loop(cluster, workload.ids, options.closed_loop_s, options.threads)
            times.add_rate("closed_loop", rate)
            await settle()
            rate = await asyncio.to_thread(_closed_loop, blocking, workload.ids, options)
            times.add_rate("blocking_closed_loop", rate)

        await measure_runs(options.runs, times, run, progress)
    return _report(options, times, notes_on_process())


def _report(options: ThreadsOptions, times: Times, notes: list[str]) -> ThreadsReport:
    single, blocking_single = times.tail("single"), times.tail("blocking_single")
    rate, blocking_rate = times.rate("closed_loop"), times.rate("blocking_closed_loop")
    return ThreadsReport(
        agents=options.agents,
        value_bytes=options.value_bytes,
        topology=options.topology,
        threads=options.threads,
        runs=options.runs,
        single_us=single,
        blocking_single_us=blocking_single,
        closed_loop_per_s=rate,
        blocking_closed_loop_per_s=blocking_rate,
        ratios=ThreadsRatios(round(blocking_single.p50 / single.p50, 3), round(blocking_rate / rate, 3)),
        notes=notes,
    )


def _single_wakes(cluster: SyncCluster, ids: Sequence[str]) -> tuple[list[int], list[State]]:
    times: list[int] = []
    states: list[State] = []
    for agent_id in ids:
        started = time.perf_counter_ns()
        state = cluster.wake(agent_id)
        times.append(time.perf_counter_ns() - started)
        states.append(state)
    return times, states


def _closed_loop(cluster: SyncCluster, ids: Sequence[str], options: ThreadsOptions) -> float:
    """Return the wakes per second of threads that each wake one agent after the other."""
    next_ids = itertools.cycle(ids)
    done: list[int] = []
    errors: list[BaseException] = []
    end = time.perf_counter() + options.closed_loop_s

    def work() -> None:
        count = 0
        try:
            while time.perf_counter() < end:
                cluster.wake(next(next_ids))
                count += 1
        except BaseException as error:
            errors.append(error)
        done.append(count)

    workers = [threading.Thread(target=work) for _ in range(options.threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return sum(done) / (time.perf_counter() - started)


def render_threads(report: ThreadsReport) -> RenderableType:
    """Return the report as tables."""
    head = Text.assemble(
        ("Wakes of an event loop and of threads", "bold"),
        f" in one process, {report.agents:,} agents asleep, five fragments of {report.value_bytes:,} bytes each"
        f" (topology {report.topology}); {report.runs} alternated runs",
    )
    times = table("What they took", "in a loop", "blocking")
    single, blocking = report.single_us, report.blocking_single_us
    times.add_row("one wake at a time, p50", f"{single.p50:,.0f} us", f"{blocking.p50:,.0f} us")
    times.add_row("one wake at a time, p99", f"{single.p99:,.0f} us", f"{blocking.p99:,.0f} us")
    times.add_row(
        f"{report.threads} that each wake one after the other",
        f"{report.closed_loop_per_s:,.0f} /s",
        f"{report.blocking_closed_loop_per_s:,.0f} /s",
    )
    texts = {
        "single": "one blocking wake to one in a loop",
        "closed_loop": f"wakes/s of {report.threads} threads to those of as many workers",
    }
    ratios = ratios_table(report.ratios, texts, TARGETS, {"closed_loop"})
    return Group(head, times, ratios, *note_lines(report.notes))
