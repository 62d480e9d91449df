"""The cost of the blocking face: wakes through `connect_sync` beside the same wakes in an event loop, in one process.

Each run measures, in alternation: one wake at a time from one thread and in the loop; then as many threads, and as many
workers in the loop, that each wake one agent after the other. Ratios are those of the medians over all runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...router.client.sync_cluster import SyncCluster, connect_sync
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
    tail_of,
)
from ..harness.progress import Progress, no_progress
from ..harness.scratch import temporary_folder
from ..harness.sleeping_cluster import sleeping_cluster
from ..harness.topologies import TopologyName
from ..harness.workload import SyntheticAgents, WorkloadError
from .report import Target, ratios_table

__all__ = ["ThreadsOptions", "ThreadsReport", "render_threads", "threads"]


class ThreadsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. The defaults take about 30 s on two cores."""

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
    folder: Path | None = None


class ThreadsRatios(msgspec.Struct, frozen=True):
    """Medians divided: `single` of times, `closed_loop` of speeds."""

    single: float
    closed_loop: float


class ThreadsReport(msgspec.Struct, frozen=True):
    """What `dawnchorus perf threads --json` prints."""

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
    for name in ("threads", "runs", "singles"):
        if getattr(options, name) < 1:
            raise WorkloadError(f"{name} must be at least 1")
    workload = SyntheticAgents(options.agents, options.value_bytes, options.seed)
    numbers = random.Random(options.seed)
    singles: tuple[list[int], list[int]] = ([], [])
    rates: tuple[list[float], list[float]] = ([], [])
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_folder(options.folder))
        sleepers = await stack.enter_async_context(sleeping_cluster(options.topology, workload, folder, progress))
        blocking = connect_sync(sleepers.topology_path)
        await asyncio.to_thread(blocking.__enter__)
        stack.push_async_callback(asyncio.to_thread, blocking.close)
        stack.enter_context(settled_memory())
        cluster: Wakes = sleepers.cluster
        for run in range(options.runs + 1):  # the first warms up
            progress("measure", run, options.runs + 1)
            agents = [numbers.randrange(options.agents) for _ in range(options.singles)]
            ids = [workload.ids[agent] for agent in agents]
            await settle()
            in_loop, states = await single_wakes(cluster, ids)
            check_states(states, agents, workload)
            await settle()
            in_thread, blocking_states = await asyncio.to_thread(_single_wakes, blocking, ids)
            check_states(blocking_states, agents, workload)
            await settle()
            rate, _ = await closed_loop(cluster, workload.ids, options.closed_loop_s, options.threads)
            await settle()
            blocking_rate = await asyncio.to_thread(_closed_loop, blocking, workload.ids, options)
            if run:
                singles[0].extend(in_loop)
                singles[1].extend(in_thread)
                rates[0].append(rate)
                rates[1].append(blocking_rate)
        progress("measure", options.runs + 1, options.runs + 1)
    return _report(options, singles, rates, notes_on_process())


def _report(
    options: ThreadsOptions,
    singles: tuple[list[int], list[int]],
    rates: tuple[list[float], list[float]],
    notes: list[str],
) -> ThreadsReport:
    single, blocking_single = map(tail_of, singles)
    rate, blocking_rate = map(statistics.median, rates)
    return ThreadsReport(
        agents=options.agents,
        value_bytes=options.value_bytes,
        topology=options.topology,
        threads=options.threads,
        runs=options.runs,
        single_us=single,
        blocking_single_us=blocking_single,
        closed_loop_per_s=round(rate, 1),
        blocking_closed_loop_per_s=round(blocking_rate, 1),
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
    """Wakes per second of threads that each wake one agent after the other."""
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
    """The report as tables."""
    head = Text.assemble(
        ("Wakes of an event loop and of threads", "bold"),
        f" in one process, {report.agents:,} agents asleep, five fragments of {report.value_bytes:,} bytes each"
        f" (topology {report.topology}); {report.runs} alternated runs",
    )
    times = Table(title="What they took", title_justify="left", title_style="bold")
    times.add_column("what")
    for column in ("in a loop", "blocking"):
        times.add_column(column, justify="right")
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
    return Group(head, times, ratios, *[Text(note, style="yellow") for note in report.notes])
