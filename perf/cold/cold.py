"""Wakes of warm agents while another client reads cold ones, and the cold ones beside plain reads of the disk.

The data's pages are let go from memory when the nodes have read ahead what they read at a start. That takes no right
beyond that to the files (`harness.cold_files`); what stays in memory all the same is said. The warm wakes run in a
process of their own (`waker`), so that only the nodes are shared. The peer: 32 threads, each reading 4 KiB at random
places of the same files, as many pages as the storm has brought into memory.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import random
import time
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from ...nodes.launcher import Launcher
from ...router.client.connect import connect
from ..harness.cold_files import PAGE_BYTES, drop, resident_pages, resident_share
from ..harness.job import start_job
from ..harness.measure import Spread, Tail, WrongResult, milliseconds, spread_of, tail_of, wake_many
from ..harness.progress import Progress, no_progress
from ..harness.report import marked, note_lines, table
from ..harness.scratch import temporary_directory
from ..harness.sleeping_cluster import sleeping_cluster
from ..harness.topologies import TopologyName
from ..harness.workload import SyntheticAgents, WorkloadError
from .waker import WakerOrder, WakerTimes

__all__ = ["ColdOptions", "ColdReport", "cold", "render_cold"]

PEER_THREADS = 32

P99_MUST, P99_AIM = 10.0, 4.0
PEER_MUST, PEER_AIM = 1.0, 0.8

_WARM_AGENTS = 100
_SETTLED_S = 0.5
"""The nodes have read ahead what they will when no page has come into memory for so long."""

_STAY_MAX = 0.1
"""If a larger share of the data stays in memory, nothing is cold enough to be measured."""

_WAKER_S = 120.0


class ColdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. The defaults take about three minutes on two cores."""

    agents: int = 600_000
    value_bytes: int = 512
    wake: int = 10_000
    topology: TopologyName = "default"
    runs: int = 3
    idle_s: float = 3.0
    seed: int = 1
    directory: Path | None = None


class ColdReport(msgspec.Struct, frozen=True):
    """What `dawnchorus perf cold --json` prints."""

    agents: int
    wake: int
    value_bytes: int
    topology: TopologyName
    runs: int
    idle: Tail
    """single wakes of warm agents while nothing else is asked for, in microseconds"""
    beside: Tail
    """the same while the cold agents are read"""
    beside_wakes: int
    p99_ratio: float
    storm: Spread
    """the cold agents, all in one call"""
    peer: Spread
    """as many pages, read by 32 threads"""
    peer_ratio: float
    """medians divided"""
    pages: int
    """that a storm brought into memory; the median"""
    stayed: float
    """the share of the data that could not be made cold"""
    notes: list[str]


async def cold(options: ColdOptions, progress: Progress = no_progress) -> ColdReport:
    """Measure; leaves no process and no file behind, however it ends."""
    if not 1 <= options.wake * options.runs <= options.agents - _WARM_AGENTS:
        raise WorkloadError(
            f"{options.runs} times {options.wake:,} agents cannot be cold once each: {options.agents:,} sleep,"
            f" {_WARM_AGENTS} of them warm"
        )
    workload = SyntheticAgents(options.agents, options.value_bytes, options.seed)
    sample = random.Random(options.seed).sample(range(options.agents), _WARM_AGENTS + options.wake * options.runs)
    ids = [workload.ids[agent] for agent in sample]
    with temporary_directory(options.directory) as directory:
        async with sleeping_cluster(options.topology, workload, directory, progress) as sleepers:
            topology = sleepers.topology_path
        files = sorted((directory / "data").rglob("data.mdb"))
        runs: list[_Run] = []
        for number in range(options.runs):
            progress("cold storms", number, options.runs)
            first = _WARM_AGENTS + number * options.wake
            order = WakerOrder(str(topology), ids[:_WARM_AGENTS], str(directory / f"end-{number}"))
            run = await _storm(topology, files, order, ids[first : first + options.wake], options.idle_s)
            drop(files)
            run.peer_ms = await asyncio.to_thread(_plain_reads, files, run.pages, options.seed + number)
            runs.append(run)
    return _report(options, runs)


class _Run(msgspec.Struct):
    """What one run came to: times of warm wakes in nanoseconds, and of the storm and its peer in milliseconds."""

    idle_ns: list[int]
    beside_ns: list[int]
    storm_ms: float
    pages: int
    stayed: float
    peer_ms: float = 0.0


async def _storm(topology: Path, files: list[Path], order: WakerOrder, ids: list[str], idle_s: float) -> _Run:
    """Start the nodes, which then have next to nothing mapped that could not be dropped, and wake cold agents."""
    drop(files)
    async with Launcher(topology), connect(topology) as cluster:
        await _read_ahead(files)
        drop(files)
        with start_job(f"{__package__}.waker", "the waker", order, topology.parent) as waker:
            await waker.answered(_WAKER_S)
            idle_from = time.monotonic_ns()
            await asyncio.sleep(idle_s)
            idle_to = time.monotonic_ns()
            drop(files)
            stayed = resident_share(files)
            if stayed > _STAY_MAX:
                raise WorkloadError(
                    f"{stayed:.0%} of the data stays in memory, so that nothing can be measured of reading it: let its"
                    f" directory {topology.parent} be on a disk, without other readers, and more agents sleep"
                )
            before = [resident_pages(file) for file in files]
            began = time.monotonic_ns()
            took, states = await milliseconds(partial(wake_many, cluster, ids))
            ended = time.monotonic_ns()
            if not all(state.complete for state in states):
                raise WrongResult("agents came back incomplete")
            pages = sum(map(_came, before, map(resident_pages, files)))
            Path(order.end).touch()
            await waker.ended(_WAKER_S)
        times = waker.answer(WakerTimes)
    return _Run(_within(times, idle_from, idle_to), _within(times, began, ended), took, pages, stayed)


def _report(options: ColdOptions, runs: list[_Run]) -> ColdReport:
    idle = tail_of([took for run in runs for took in run.idle_ns])
    wakes = [took for run in runs for took in run.beside_ns]
    beside = tail_of(wakes)
    storm, peer = spread_of([run.storm_ms for run in runs]), spread_of([run.peer_ms for run in runs])
    stayed = max(run.stayed for run in runs)
    return ColdReport(
        agents=options.agents,
        wake=options.wake,
        value_bytes=options.value_bytes,
        topology=options.topology,
        runs=options.runs,
        idle=idle,
        beside=beside,
        beside_wakes=len(wakes),
        p99_ratio=round(beside.p99 / idle.p99, 2),
        storm=storm,
        peer=peer,
        peer_ratio=round(storm.p50 / peer.p50, 3),
        pages=sorted(run.pages for run in runs)[len(runs) // 2],
        stayed=round(stayed, 4),
        notes=_notes(stayed, len(wakes)),
    )


async def _read_ahead(files: list[Path]) -> None:
    """Wait until the nodes have read what they read at their start."""
    share, since = -1.0, time.monotonic()
    while time.monotonic() - since < _SETTLED_S:
        await asyncio.sleep(_SETTLED_S / 5)
        now = await asyncio.to_thread(resident_share, files)
        if now != share:
            share, since = now, time.monotonic()


def _came(before: bytes, after: bytes) -> int:
    """Count the pages of a file that have come into memory."""
    return sum(map(int.__gt__, after, before))


def _within(times: WakerTimes, since: int, to: int) -> list[int]:
    """Return how long those wakes took that were under way in this time."""
    took = [
        took for began, took in zip(times.began_ns, times.took_ns, strict=True) if began < to and began + took > since
    ]
    if not took:
        raise WrongResult("no warm agent was woken in that time: wake more cold ones")
    return took


def _plain_reads(files: list[Path], count: int, seed: int) -> float:
    """Read so many pages that are not in memory, at random places, in PEER_THREADS threads; return the milliseconds."""
    places = [(file, page) for file in files for page, there in enumerate(resident_pages(file)) if not there]
    chosen = random.Random(seed).sample(places, min(count, len(places)))
    with contextlib.ExitStack() as stack:
        descriptors: dict[Path, int] = {}
        for file in files:
            descriptors[file] = os.open(file, os.O_RDONLY)
            stack.callback(os.close, descriptors[file])
            os.posix_fadvise(descriptors[file], 0, 0, os.POSIX_FADV_RANDOM)

        def read(part: list[tuple[Path, int]]) -> None:
            for file, page in part:
                os.pread(descriptors[file], PAGE_BYTES, page * PAGE_BYTES)

        parts = [chosen[number::PEER_THREADS] for number in range(PEER_THREADS)]
        with concurrent.futures.ThreadPoolExecutor(PEER_THREADS) as pool:
            began = time.perf_counter()
            list(pool.map(read, parts))
            return (time.perf_counter() - began) * 1_000


def _notes(stayed: float, wakes: int) -> list[str]:
    notes: list[str] = []
    if stayed > 0.01:
        notes.append(f"{stayed:.1%} of the data stayed in memory: processes have those pages mapped")
    if wakes < 100:
        notes.append(f"only {wakes} warm wakes met a storm: their p99 is their slowest one")
    return notes


def render_cold(report: ColdReport) -> RenderableType:
    """The report as tables."""
    head = Text.assemble(
        (f"{report.runs} storms of {report.wake:,} cold agents", "bold"),
        f" of {report.agents:,}, five fragments of {report.value_bytes:,} bytes each (topology {report.topology})",
    )
    wakes = table("Single wakes of warm agents by another client", "median", "p99")
    for what, tail in (("idle", report.idle), (f"beside a storm ({report.beside_wakes:,} wakes)", report.beside)):
        wakes.add_row(what, f"{tail.p50:,.0f} us", f"{tail.p99:,.0f} us")
    storms = table(f"Reading {report.pages:,} pages that are not in memory", "best", "median", "worst")
    for what, spread in (("the storm", report.storm), (f"{PEER_THREADS} threads of plain reads", report.peer)):
        storms.add_row(what, *(f"{value:,.1f} ms" for value in (spread.min, spread.p50, spread.max)))
    ratios = table("Ratios", "ratio", "must", "aim")
    for what, ratio, must, aim in (
        ("p99 of warm wakes, beside a storm / idle", report.p99_ratio, P99_MUST, P99_AIM),
        ("storm / plain reads", report.peer_ratio, PEER_MUST, PEER_AIM),
    ):
        ratios.add_row(what, marked(f"{ratio:g}", met=ratio <= must), f"<= {must:g}", f"<= {aim:g}")
    return Group(head, wakes, storms, ratios, *note_lines(report.notes))
