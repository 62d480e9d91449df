"""The commands `load` and `export`: whole clusters in and out as NDJSON."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from ...router.client.cluster import Cluster
from ...router.client.connect import connect
from ...wire.errors import DawnchorusError
from ..console.async_runner import in_thread, run
from ..console.options import endpoint_or_file_option, json_option
from ..console.output import Problems, format_bytes, print_json, progress_bar
from ..transfer.exporter import Exporter
from ..transfer.loader import Loader, LoadStopped
from ..transfer.ndjson import LINE_BYTES_MAX
from ..transfer.streams import LineReader, OutputFile

__all__ = ["export", "load"]

COUNT_DEADLINE_S: Final = 2.0
"""For the number of agents beside a progress bar: nobody would wait longer for that."""


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True))
@click.option(
    "--copies",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Save every agent N times, under the names ID, ID~1, ID~2, ...",
)
@endpoint_or_file_option
@json_option("Print the summary as one JSON object, with up to 1,000 problems.")
def load(file: str, copies: int, topology: str, as_json: bool) -> int:
    """Save the agents of FILE (`-`: standard input), one JSON object a line.

    \b
    {"agent_id": "agent-42", "fragments": {"profile": {"name": "Mia"}, "session": {"$bytes": "AAEC"}}}

    Only the kinds that a line names are written. Bytes are {"$bytes": "base64"}; an object that has such a key itself
    is written with "$$bytes". docs/values.md has the other values that JSON does not know. A line may say when
    fragments expire: "expires": {"session": "2026-01-02T03:04:05Z"}, or null for never; with a time in the past the
    fragment is loaded as expired.

    A line that cannot be saved is named by its number on standard error, all others are saved, and the exit code is
    then 1. A load that is interrupted says how much was saved; loading the file again writes
    the same values once more, under new versions.

    \b
    Example:
      dawnchorus load agents.ndjson --copies 50
    """
    return run(_load(file, copies, topology, as_json))


async def _load(file: str, copies: int, topology: str, as_json: bool) -> int:
    try:
        reader = LineReader(file, LINE_BYTES_MAX)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from None
    stopped: BaseException | None = None
    async with connect(topology) as cluster:
        with progress_bar("load") as bar:
            problems = Problems(bar)
            loader = Loader(cluster, tuple(cluster.topology.kinds), copies, problems)
            try:
                await loader.load(reader, bar)
            except (LoadStopped, asyncio.CancelledError, OSError) as error:
                stopped = error
            problems.finish()
    _print_load(loader, problems, as_json, None if stopped is None else _why_stopped(stopped, file))
    if isinstance(stopped, asyncio.CancelledError):
        raise stopped  # Ctrl-C or SIGTERM: its own exit code
    if isinstance(stopped, OSError):
        raise click.ClickException(_why_stopped(stopped, file))
    if stopped is not None:
        click.echo(f"Error: {stopped}", err=True)
    return 1 if problems.count or stopped is not None else 0


def _why_stopped(stopped: BaseException, file: str) -> str:
    if isinstance(stopped, OSError):
        return f"{file}: {stopped.strerror}"
    return "interrupted" if isinstance(stopped, asyncio.CancelledError) else str(stopped)


def _print_load(loader: Loader, problems: Problems, as_json: bool, stopped: str | None) -> None:
    """Say what was loaded, also by a load that was cut short: loading the same file again is then harmless."""
    totals = loader.totals
    if as_json:
        counts = {**asdict(totals), "unknown": loader.unknown, "problem_count": problems.count}
        print_json({**counts, "stopped": stopped, "problems": problems.listed})
        return
    rate = totals.agents / totals.seconds if totals.seconds else 0.0
    click.echo(
        f"loaded {totals.agents:,} agents, {totals.fragments:,} fragments, {format_bytes(totals.bytes)} of JSON"
        f" in {totals.seconds:.1f} s ({rate:,.0f} agents/s)"
        + (f"; {problems.count:,} not loaded, listed above" if problems.count else "")
        + (f"; {loader.unknown:,} were sent and may be loaded or not" if loader.unknown else "")
        + (f"; stopped after line {totals.lines:,}" if stopped is not None else "")
    )


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@endpoint_or_file_option
@json_option("Print the summary as one JSON object: to standard output with FILE, else to standard error.")
def export(file: str, topology: str, as_json: bool) -> int:
    """Write all agents to FILE (default: standard output), in the order of their ids, in the form that `load` reads.

    An agent is written complete or not at all: one with a kind that could not be read is named on standard error, and
    the exit code is then 1. All nodes have to be up, as each lists the agents of its shards: without one the export
    ends with an error. FILE appears, or is replaced, only when everything is in it.

    \b
    Example:
      dawnchorus export agents.ndjson
      dawnchorus export | head -1
    """
    if file != "-" and not Path(file).resolve().parent.is_dir():
        raise click.UsageError(f"{file}: its directory does not exist")
    return run(_export(file, topology, as_json))


async def _export(file: str, topology: str, as_json: bool) -> int:
    async with connect(topology) as cluster:
        try:
            output = OutputFile(file)
        except OSError as error:
            raise click.UsageError(f"{file}: {error.strerror}") from None
        try:
            with progress_bar("export") as bar:
                problems = Problems(bar)
                kinds = cluster.topology.kinds
                expiring = [kind for kind, spec in kinds.items() if spec.ttl_s is not None]
                exporter = Exporter(cluster, tuple(kinds), expiring, problems)
                async with aclosing(cluster.agents()) as ids:
                    await exporter.export(ids, output, bar, await _count_agents(cluster))
                for kind in cluster.topology.kinds:
                    if kind not in kinds:  # nodes were started again with a topology that has more
                        problems.add(
                            f"kind {kind!r} is left out: the cluster got it meanwhile; export again", kind=kind
                        )
                problems.finish()
            await in_thread(output.commit)
        except OSError as error:
            if isinstance(error, BrokenPipeError | DawnchorusError):
                raise
            raise click.ClickException(f"{file}: {error.strerror}") from None
        finally:
            output.discard()
    totals = exporter.totals
    to_stderr = file == "-"
    if as_json:
        print_json(
            {**asdict(totals), "problem_count": problems.count, "problems": problems.listed}, to_stderr=to_stderr
        )
    elif not to_stderr or sys.stderr.isatty():
        click.echo(
            f"exported {totals.agents:,} agents, {totals.fragments:,} fragments, {format_bytes(totals.bytes)}"
            f" in {totals.seconds:.1f} s" + (f"; {problems.count:,} left out" if problems.count else ""),
            err=to_stderr,
        )
    return 1 if problems.count else 0


async def _count_agents(cluster: Cluster) -> int | None:
    """Return about how many agents there are: those of the largest store; None if not every node answers in time."""
    agents: dict[str, int] = {}
    for reply in (await cluster.status(COUNT_DEADLINE_S)).values():
        if isinstance(reply, DawnchorusError):
            return None
        for shard in reply.shards:
            agents[shard.store] = agents.get(shard.store, 0) + shard.agents
    return max(agents.values(), default=None)
