"""The commands below `perf`: the harness from the command line.

Each takes the options of one measurement, whose defaults are those of its options in `perf`, and prints its report: as
tables, or with `--json` as one object.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import RenderableType

from ...perf.chaos.options import NODES, ChaosOptions
from ...perf.chaos.report import render_chaos
from ...perf.chaos.run import chaos
from ...perf.chaos.script import PHASE_NAMES, parse_phases
from ...perf.cold.cold import ColdOptions, cold, render_cold
from ...perf.harness.progress import Progress
from ...perf.harness.topologies import TOPOLOGY_NAMES
from ...perf.harness.workload import GivenAgents
from ...perf.memory.memory import MemoryOptions, memory, render_memory
from ...perf.saves.save import SaveOptions, render_save, save
from ...perf.storm.report import render
from ...perf.storm.storm import StormOptions, storm
from ...perf.storm.threads import ThreadsOptions, render_threads, threads
from ..console.async_runner import run
from ..console.options import json_option
from ..console.output import progress_bar
from ..console.tables import result_console
from ..transfer.ndjson import LINE_BYTES_MAX, BrokenLine, parse_line
from ..transfer.streams import InputLine, LineReader

__all__ = ["perf"]

_STORM, _SAVE, _MEMORY, _COLD = StormOptions(), SaveOptions(), MemoryOptions(), ColdOptions()
_THREADS, _CHAOS = ThreadsOptions(), ChaosOptions()

Command = TypeVar("Command", bound=Callable[..., Any])
Report = TypeVar("Report", bound=msgspec.Struct)


@click.group()
def perf() -> None:
    """Measure wake storms and durable saves beside Redis and others, memory, and wakes while nodes fail.

    Everything is measured on clusters that are started for it in a temporary directory, and gone afterwards.
    """


def _count(
    name: str, default: int | None, help_text: str, *, least: int = 1, most: int | None = None
) -> Callable[[Command], Command]:
    """Return an option that takes a whole number; `help_text` says what the default is if it is None."""
    bounds = click.IntRange(min=least, max=most)
    return click.option(name, type=bounds, default=default, show_default=default is not None, help=help_text)


def _seconds(
    field: str, default: float, help_text: str, *, least: float = 0.01, most: float | None = None
) -> Callable[[Command], Command]:
    """Return the option `--seconds`, which sets the field of a measurement's options."""
    bounds = click.FloatRange(min=least, max=most)
    return click.option("--seconds", field, type=bounds, default=default, show_default=True, help=help_text)


def _topology(default: str) -> Callable[[Command], Command]:
    """Return the option that chooses one of the harness's own topologies."""
    return click.option(
        "-t",
        "--topology",
        type=click.Choice(TOPOLOGY_NAMES),
        default=default,
        show_default=True,
        help="One store on two nodes, five stores on five nodes, or the three stores of the default topology.",
    )


def _seed(default: int, what: str) -> Callable[[Command], Command]:
    """Return the option that seeds what is drawn by chance."""
    return click.option("--seed", type=int, default=default, show_default=True, help=f"Chooses {what}.")


_RUNS = "Runs, in each of which everything is measured in turn; nine or more for figures to publish."
_json = json_option("Print one JSON object.")


def _measured(
    name: str,
    measure: Callable[[Progress], Coroutine[Any, Any, Report]],
    render_report: Callable[[Report], RenderableType],
    as_json: bool,
) -> int:
    """Measure, with a progress bar, and print the report."""

    async def work() -> int:
        with progress_bar(name) as bar:
            report = await measure(bar.show)
        if as_json:
            click.echo(msgspec.json.encode(report))
        else:
            result_console().print(render_report(report))
        return 0

    return run(work())


@perf.command("storm", short_help="Wake thousands of agents at once, beside Redis.")
@_count("--agents", None, f"Made-up agents asleep (default: {_STORM.agents:,}).")
@_count("--wake", None, f"Agents woken at once (default: {_STORM.wake:,}, or all if fewer sleep).")
@_count("--value-bytes", None, f"Bytes of each made-up fragment (default: {_STORM.value_bytes}).")
@_topology(_STORM.topology)
@_count("--runs", _STORM.runs, _RUNS)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Put the agents of this NDJSON file to sleep instead of made-up ones.",
)
@click.option("--copies", type=click.IntRange(min=1), metavar="N", help="Each agent of the file N times.")
@_count("--singles", _STORM.singles, "Wakes one at a time, and echoes, in each run.")
@_seconds("closed_loop_s", _STORM.closed_loop_s, "How long the workers wake agents in each run.")
@_seed(_STORM.seed, "the agents that are woken")
@_json
def storm_command(
    agents: int | None,
    wake: int | None,
    value_bytes: int | None,
    file: str | None,
    copies: int | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Wake thousands of agents at once, beside Redis and raw ZeroMQ in the same runs.

    Starts a cluster, and a redis-server if there is one, fills both with the same agents and wakes them in turn: all
    in one wake_many, one task per agent, one at a time, and by 1,024 workers that each wake one agent after the other.

    \b
    Example:
      dawnchorus perf storm --topology one-store --runs 9
      dawnchorus perf storm --file agents.ndjson --copies 50 --json
    """
    if file is None and copies is not None:
        raise click.UsageError("--copies is for --file")
    if file is not None and (agents is not None or value_bytes is not None):
        raise click.UsageError("--agents and --value-bytes make agents up; --file brings its own")
    workload = None if file is None else GivenAgents(_read_agents(file), copies or 1)
    asleep = len(workload.ids) if workload is not None else agents or _STORM.agents
    options = StormOptions(
        agents=agents or _STORM.agents,
        value_bytes=value_bytes or _STORM.value_bytes,
        workload=workload,
        wake=wake or min(_STORM.wake, asleep),
        **given,
    )
    return _measured("storm", partial(storm, options), render, as_json)


@perf.command("save", short_help="Save durably, beside Redis and PostgreSQL.")
@_count("--agents", _SAVE.agents, "Made-up agents, all saved at once.", least=2)
@_count("--value-bytes", _SAVE.value_bytes, "Bytes of each fragment.")
@_topology(_SAVE.topology)
@_count("--runs", _SAVE.runs, _RUNS)
@_count("--savers", None, f"Concurrent savers (default: {_SAVE.savers:,}, or half the agents if fewer).")
@_count("--singles", _SAVE.singles, "Saves one at a time in each run.")
@_seconds("concurrent_s", _SAVE.concurrent_s, "How long the concurrent savers save in each run.")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Put all data below this directory: it chooses the disk to be measured (default: here).",
)
@_json
def save_command(savers: int | None, as_json: bool, **given: Any) -> int:
    """Save durably, beside Redis, PostgreSQL and the disk itself in the same runs.

    Starts a cluster, and a redis-server and a PostgreSQL 15 if there are, all on the same disk and all syncing before
    they answer, and saves in turn: all agents in one save_many, one at a time, and by 1,000 concurrent savers; wakes
    are timed beside savers and without.

    \b
    Example:
      dawnchorus perf save --runs 9
      dawnchorus perf save --directory /mnt/disk --json
    """
    options = SaveOptions(savers=savers or min(_SAVE.savers, given["agents"] // 2), **given)
    return _measured("save", partial(save, options), render_save, as_json)


@perf.command("memory", short_help="Memory that storms cost nodes and clients.")
@_count("--agents", _MEMORY.agents, "Made-up agents asleep.")
@_count("--wake", _MEMORY.wake, "Agents woken at once.")
@_count("--value-bytes", _MEMORY.value_bytes, "Bytes of each fragment.")
@_topology(_MEMORY.topology)
@_count("--storms", _MEMORY.storms, "Storms, one by one.", least=2)
@_seed(_MEMORY.seed, "the agents that are woken")
@_json
def memory_command(as_json: bool, **given: Any) -> int:
    """Measure what many storms cost the nodes in memory, and what woken agents cost a client.

    \b
    Example:
      dawnchorus perf memory --storms 100
    """
    return _measured("memory", partial(memory, MemoryOptions(**given)), render_memory, as_json)


@perf.command("cold", short_help="Wakes while another client reads what is not in memory.")
@_count("--agents", _COLD.agents, "Made-up agents asleep.")
@_count("--wake", _COLD.wake, "Cold agents woken at once.")
@_count("--value-bytes", _COLD.value_bytes, "Bytes of each fragment.")
@_topology(_COLD.topology)
@_count("--runs", _COLD.runs, "Storms, each of agents that were not woken before.")
@_seed(_COLD.seed, "the agents that are woken")
@_json
def cold_command(as_json: bool, **given: Any) -> int:
    """Measure what one client's wakes of agents that are not in memory cost another client.

    The data's pages are let go from memory first; it says how much of it stays.

    \b
    Example:
      dawnchorus perf cold --runs 9
    """
    return _measured("cold", partial(cold, ColdOptions(**given)), render_cold, as_json)


@perf.command("threads", short_help="Wakes of blocking threads, beside an event loop.")
@_count("--threads", _THREADS.threads, "Blocking threads, and as many workers in the event loop beside them.")
@_topology(_THREADS.topology)
@_count("--runs", _THREADS.runs, _RUNS)
@_seconds("closed_loop_s", _THREADS.closed_loop_s, "How long threads, and then workers, wake agents in each run.")
@_json
def threads_command(as_json: bool, **given: Any) -> int:
    """Measure what `connect_sync` costs: wakes of blocking threads beside those of an event loop, in one process.

    \b
    Example:
      dawnchorus perf threads --runs 9
    """
    return _measured("threads", partial(threads, ThreadsOptions(**given)), render_threads, as_json)


@perf.command("chaos", short_help="Wake agents while nodes fail or are overloaded.")
@click.option(
    "--phases",
    default=",".join(_CHAOS.phases),
    show_default=True,
    metavar="PHASE,...",
    help=f"The phases, one after the other, each one of: {', '.join(PHASE_NAMES)}.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=1, max=100_000),
    default=_CHAOS.rate,
    show_default=True,
    help="Wakes a second; the phase overload finds its own.",
)
@_seconds(
    "seconds",
    _CHAOS.seconds,
    "Length of an ordinary phase; flapping takes five times as long, overload three and a third.",
    least=0.1,
    most=3_600,
)
@_count("--agents", _CHAOS.agents, "Made-up agents asleep.")
@_count("--deadline-ms", _CHAOS.deadline_ms, "Deadline of each wake, in milliseconds.", most=60_000)
@click.option(
    "--node",
    type=click.Choice(NODES),
    default=_CHAOS.node,
    show_default=True,
    help="The node that fails; without identity-1 wakes fail, without another they are degraded.",
)
@_seed(_CHAOS.seed, "the order in which agents are woken")
@_json
def chaos_command(phases: str, as_json: bool, **given: Any) -> int:
    """Wake agents at a steady rate while a node is stopped, late, killed, flapping or cut off, or all are overloaded.

    Every wake's start is planned beforehand, and its latency counts from there: a stall of the load cannot hide. The
    phase cut-off drops packets in a network namespace of its own, which takes root and nft; without them it is skipped.

    \b
    Example:
      dawnchorus perf chaos
      dawnchorus perf chaos --phases healthy,stopped,after --seconds 10 --json
    """
    options = ChaosOptions(phases=parse_phases(phases), **given)
    return _measured("chaos", partial(chaos, options), render_chaos, as_json)


def _read_agents(path: str) -> list[tuple[str, dict[str, object]]]:
    """Return all agents of a file; unlike `load`, a storm does not go on without those of broken lines."""
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
