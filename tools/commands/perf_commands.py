"""The commands `perf storm`, `save`, `threads`, `memory` and `chaos`: the harness from the command line."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from ...perf.chaos.options import NODES, ChaosOptions
from ...perf.chaos.report import render_chaos
from ...perf.chaos.run import chaos
from ...perf.chaos.script import PHASE_NAMES, parse_phases
from ...perf.harness.progress import Progress
from ...perf.harness.topologies import TOPOLOGY_NAMES, TopologyName
from ...perf.harness.workload import GivenAgents
from ...perf.memory.memory import MemoryOptions, memory, render_memory
from ...perf.saves.save import SaveOptions, render_save, save
from ...perf.storm.report import render
from ...perf.storm.storm import StormOptions, storm
from ...perf.storm.threads import ThreadsOptions, render_threads, threads
from ..console.async_runner import run
from ..console.options import json_option
from ..console.output import ProgressBar, progress_bar
from ..console.tables import result_console
from ..transfer.ndjson import LINE_BYTES_MAX, BrokenLine, parse_line
from ..transfer.streams import InputLine, LineReader

__all__ = ["perf"]


@click.group()
def perf() -> None:
    """Measure: wake storms and durable saves beside their peers and limits, memory, and wakes while things go wrong.

    Everything is measured on clusters that are started for it in a temporary folder, and gone afterwards.
    """


_topology_option = click.option(
    "-t",
    "--topology",
    type=click.Choice(TOPOLOGY_NAMES),
    default="default",
    show_default=True,
    help="One store on two nodes, five stores on five nodes, or three stores on three nodes.",
)


@perf.command("storm")
@click.option("--agents", type=click.IntRange(min=1), help="Made-up agents asleep (default: 100,000).")
@click.option(
    "--wake", type=click.IntRange(min=1), help="Agents woken at once (default: 10,000, or all if fewer sleep)."
)
@click.option("--value-bytes", type=click.IntRange(min=1), help="Bytes of each made-up fragment (default: 512).")
@_topology_option
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=StormOptions().runs,
    show_default=True,
    help="Alternated runs; nine or more for numbers that others are shown.",
)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Put the agents of this NDJSON file to sleep instead of made-up ones.",
)
@click.option("--copies", type=click.IntRange(min=1), metavar="N", help="Each agent of the file N times.")
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the agents that are woken.")
@json_option("Print one JSON object.")
def storm_command(
    agents: int | None,
    wake: int | None,
    value_bytes: int | None,
    topology: TopologyName,
    runs: int,
    file: str | None,
    copies: int | None,
    seed: int,
    as_json: bool,
) -> int:
    """Wake thousands of agents at once, beside Redis and raw ZeroMQ in the same runs.

    Starts a cluster, and a redis-server if there is one, fills both with the same agents and wakes them in alternation:
    all in one wake_many, one task per agent, one at a time, and by 1,024 workers in a closed loop.

    \b
    Example:
      dawnchorus perf storm --topology one-store --runs 9
      dawnchorus perf storm --file agents.ndjson --copies 50 --json
    """
    if file is None and copies is not None:
        raise click.UsageError("--copies is for --file")
    if file is not None and (agents is not None or value_bytes is not None):
        raise click.UsageError("--agents and --value-bytes make agents up; --file brings its own")
    defaults = StormOptions()
    workload = None if file is None else GivenAgents(_read_agents(file), copies or 1)
    asleep = len(workload.ids) if workload is not None else agents or defaults.agents
    options = StormOptions(
        agents=agents or defaults.agents,
        value_bytes=value_bytes or defaults.value_bytes,
        workload=workload,
        wake=wake or min(defaults.wake, asleep),
        topology=topology,
        runs=runs,
        seed=seed,
    )
    return run(_storm(options, as_json))


async def _storm(options: StormOptions, as_json: bool) -> int:
    with progress_bar("storm") as bar:
        report = await storm(options, _show_on(bar))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        result_console().print(render(report))
    return 0


@perf.command("save")
@click.option(
    "--agents",
    type=click.IntRange(min=2),
    default=SaveOptions().agents,
    show_default=True,
    help="Made-up agents, all saved at once.",
)
@click.option(
    "--value-bytes",
    type=click.IntRange(min=1),
    default=SaveOptions().value_bytes,
    show_default=True,
    help="Bytes of each fragment.",
)
@click.option(
    "-t",
    "--topology",
    type=click.Choice(TOPOLOGY_NAMES),
    default=SaveOptions().topology,
    show_default=True,
    help="One store on two nodes, five stores on five nodes, or three stores on three nodes.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=SaveOptions().runs,
    show_default=True,
    help="Alternated runs; nine or more for numbers that others are shown.",
)
@click.option(
    "--savers", type=click.IntRange(min=1), help="Savers at once (default: 1,000, or half the agents if fewer)."
)
@click.option(
    "--singles",
    type=click.IntRange(min=1),
    default=SaveOptions().singles,
    show_default=True,
    help="Saves one at a time in each run.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=SaveOptions().concurrent_s,
    show_default=True,
    help="How long the savers save in each run.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="All data goes below this folder: choose the disk to be measured (default: here).",
)
@json_option("Print one JSON object.")
def save_command(
    agents: int,
    value_bytes: int,
    topology: TopologyName,
    runs: int,
    savers: int | None,
    singles: int,
    seconds: float,
    folder: Path | None,
    as_json: bool,
) -> int:
    """Save durably, beside Redis, PostgreSQL and the disk itself in the same runs.

    Starts a cluster, and a redis-server and a PostgreSQL 15 if there are, all on the same disk and all syncing before
    they answer, and saves in alternation: all agents in one save_many, one at a time, and by 1,000 savers at once;
    wakes are timed beside savers and without.

    \b
    Example:
      dawnchorus perf save --runs 9
      dawnchorus perf save --folder /mnt/disk --json
    """
    options = SaveOptions(
        agents=agents,
        value_bytes=value_bytes,
        topology=topology,
        runs=runs,
        savers=savers or min(SaveOptions().savers, agents // 2),
        singles=singles,
        concurrent_s=seconds,
        folder=folder,
    )
    return run(_save(options, as_json))


async def _save(options: SaveOptions, as_json: bool) -> int:
    with progress_bar("save") as bar:
        report = await save(options, _show_on(bar))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        result_console().print(render_save(report))
    return 0


@perf.command("memory")
@click.option("--agents", type=click.IntRange(min=1), default=100_000, show_default=True, help="Made-up agents asleep.")
@click.option("--wake", type=click.IntRange(min=1), default=10_000, show_default=True, help="Agents woken at once.")
@click.option(
    "--value-bytes", type=click.IntRange(min=1), default=512, show_default=True, help="Bytes of each fragment."
)
@_topology_option
@click.option("--storms", type=click.IntRange(min=2), default=100, show_default=True, help="Storms, one by one.")
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the agents that are woken.")
@json_option("Print one JSON object.")
def memory_command(
    agents: int, wake: int, value_bytes: int, topology: TopologyName, storms: int, seed: int, as_json: bool
) -> int:
    """Measure what many storms cost the nodes in memory, and what woken agents cost a client.

    \b
    Example:
      dawnchorus perf memory --storms 100
    """
    options = MemoryOptions(
        agents=agents, value_bytes=value_bytes, wake=wake, topology=topology, storms=storms, seed=seed
    )
    return run(_memory(options, as_json))


async def _memory(options: MemoryOptions, as_json: bool) -> int:
    with progress_bar("memory") as bar:
        report = await memory(options, _show_on(bar))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        result_console().print(render_memory(report))
    return 0


@perf.command("threads")
@click.option(
    "--threads", "count", type=click.IntRange(min=1), default=64, show_default=True, help="And asyncio workers."
)
@_topology_option
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Alternated runs.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Of each closed loop.")
@json_option("Print one JSON object.")
def threads_command(count: int, topology: TopologyName, runs: int, seconds: float, as_json: bool) -> int:
    """Measure what `connect_sync` costs: wakes of blocking threads beside those of an event loop, in one process.

    \b
    Example:
      dawnchorus perf threads --runs 9
    """
    return run(_threads(ThreadsOptions(threads=count, topology=topology, runs=runs, closed_loop_s=seconds), as_json))


async def _threads(options: ThreadsOptions, as_json: bool) -> int:
    with progress_bar("threads") as bar:
        report = await threads(options, _show_on(bar))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        result_console().print(render_threads(report))
    return 0


@perf.command("chaos")
@click.option(
    "--phases",
    default=",".join(ChaosOptions().phases),
    show_default=True,
    metavar="NAME,...",
    help=f"What follows each other, of: {', '.join(PHASE_NAMES)}.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=1, max=100_000),
    default=ChaosOptions().rate,
    show_default=True,
    help="Wakes a second; overload finds its own.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=3_600),
    default=ChaosOptions().seconds,
    show_default=True,
    help="Length of an ordinary phase; flapping takes five times as long, overload three and a third.",
)
@click.option(
    "--agents",
    type=click.IntRange(min=1),
    default=ChaosOptions().agents,
    show_default=True,
    help="Made-up agents asleep.",
)
@click.option(
    "--deadline-ms",
    type=click.IntRange(min=1, max=60_000),
    default=ChaosOptions().deadline_ms,
    show_default=True,
    help="Of each wake.",
)
@click.option(
    "--node",
    type=click.Choice(NODES),
    default=ChaosOptions().node,
    show_default=True,
    help="What the faults are done to; without identity-1 wakes fail, without another they are degraded.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the order in which agents are woken.")
@json_option("Print one JSON object.")
def chaos_command(
    phases: str, rate: float, seconds: float, agents: int, deadline_ms: int, node: str, seed: int, as_json: bool
) -> int:
    """Wake agents at a steady rate while a node is stopped, late, killed, flapping or cut off, or all are overloaded.

    Every wake's start is planned beforehand, and its latency counts from there: what stalls cannot hide. Packets are
    dropped in a network namespace of their own, which takes root and nft; without them that phase is left unproven.

    \b
    Example:
      dawnchorus perf chaos
      dawnchorus perf chaos --phases healthy,stopped,after --seconds 10 --json
    """
    options = ChaosOptions(
        phases=parse_phases(phases),
        rate=rate,
        seconds=seconds,
        agents=agents,
        deadline_ms=deadline_ms,
        node=node,
        seed=seed,
    )
    return run(_chaos(options, as_json))


async def _chaos(options: ChaosOptions, as_json: bool) -> int:
    with progress_bar("chaos") as bar:
        report = await chaos(options, _show_on(bar))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        result_console().print(render_chaos(report))
    return 0


def _show_on(bar: ProgressBar) -> Progress:
    def show(phase: str, done: int, total: int) -> None:
        bar.show(phase, done, total)

    return show


def _read_agents(path: str) -> list[tuple[str, dict[str, object]]]:
    """All agents of a file; unlike `load`, a storm does not go on without those of broken lines."""
    try:
        reader = LineReader(path, LINE_BYTES_MAX)
        agents: list[tuple[str, dict[str, object]]] = []
        while (lines := reader.read()) is not None:
            agents += [_read_agent(line) for line in lines if line.text is None or line.text.strip()]
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None
    return agents


def _read_agent(line: InputLine) -> tuple[str, dict[str, object]]:
    try:
        if line.text is None:
            raise BrokenLine("too long")
        agent_id, fragments, _ = parse_line(line.text)
    except BrokenLine as error:
        raise click.UsageError(f"line {line.number}: {error}") from None
    return agent_id, fragments
