"""The commands `wake`, `save` and `delete`: single agents, seen and changed by hand and by scripts."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress

import click

from ...router.client.connect import connect
from ...router.ids import check_agent_id
from ...router.wakes.agent_state import AgentState
from ...wire.errors import (
    AgentNotFound,
    FragmentAbsent,
    FragmentUnavailable,
    FragmentUndecodable,
    SaveError,
    SaveIncomplete,
    WakeIncomplete,
)
from ..console.async_runner import run
from ..console.options import CONNECT_DEADLINE_S, deadline_option, endpoint_or_file_option, json_option
from ..console.output import print_json
from ..transfer.json_values import NotJson, UnreadableJson, encode_value, parse_value, write_json
from ..transfer.ndjson import LINE_BYTES_MAX

__all__ = ["delete", "save", "wake"]


def _split_kinds(_ctx: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    kinds = tuple(kind for part in value for kind in part.split(","))
    if len(set(kinds)) < len(kinds):
        raise click.BadParameter("a kind is named twice.")
    return kinds


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--kinds",
    "--kind",
    multiple=True,
    metavar="KIND[,KIND...]",
    callback=_split_kinds,
    help='Only these kinds (default: all but those of stores with wake = "lazy").',
)
@deadline_option("wake_deadline_ms of the topology")
@endpoint_or_file_option
@json_option("Print one line of JSON for each agent, also on a terminal.")
def wake(ids: tuple[str, ...], kinds: tuple[str, ...], deadline_s: float | None, topology: str, as_json: bool) -> int:
    """Show the state of agents: the outcome, version and value of each kind.

    Prints one JSON object for each ID, in their order: over several lines on a terminal, on one line otherwise.
    Versions are strings, as JSON numbers are not exact beyond 2^53; bytes are {"$bytes": "base64"}.

    Outcomes: OK; ABSENT: never written, or deleted; EXPIRED; TIMEOUT: no answer within the deadline; UNAVAILABLE: its
    node is down; SHED: not asked, as its node is overloaded; FAULT: its data is corrupt, or its node failed. A kind
    that could not be read is under "fallbacks", not "values", if the topology has a fallback for it. "complete": every
    kind asked for could be read, also if it is ABSENT or EXPIRED. "found" is false if no required kind is there. The
    exit code is 1 if an agent was not found, or a kind could not be read.

    \b
    Example:
      dawnchorus wake agent-42
      dawnchorus wake agent-42 agent-43 --kinds profile,session --deadline-s 0.5 --json
    """
    return run(_wake(ids, kinds or None, deadline_s, topology, pretty=sys.stdout.isatty() and not as_json))


async def _wake(
    ids: tuple[str, ...], kinds: tuple[str, ...] | None, deadline_s: float | None, topology: str, *, pretty: bool
) -> int:
    for agent_id in ids:
        check_agent_id(agent_id)
    async with connect(topology, connect_deadline_s=CONNECT_DEADLINE_S) as cluster:
        wakes = [cluster.wake(agent_id, kinds=kinds, deadline_s=deadline_s) for agent_id in ids]
        results = await asyncio.gather(*wakes, return_exceptions=True)
    known = tuple(cluster.topology.kinds)
    all_read = True
    for agent_id, result in zip(ids, results, strict=True):
        problems: list[str] = []
        if isinstance(result, WakeIncomplete):
            described = _describe(result.state, kinds or _asked(result.state, known), problems)
        elif isinstance(result, AgentNotFound):
            described = {"agent_id": agent_id, "found": False, "complete": False}
            problems.append(str(result))
        elif isinstance(result, BaseException):
            raise result
        else:
            described = _describe(result, kinds or _asked(result, known), problems)
        click.echo(write_json(described, pretty=pretty))
        for problem in problems:
            click.echo(problem, err=True)
        all_read = all_read and not problems
    return 0 if all_read else 1


def _asked(state: AgentState, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kinds that a wake has asked for: all but those of lazy stores, where none is named."""
    asked: list[str] = []
    for kind in kinds:
        with suppress(FragmentUnavailable):
            state.outcome(kind)
            asked.append(kind)
    return tuple(asked)


def _describe(state: AgentState, kinds: tuple[str, ...], problems: list[str]) -> dict[str, object]:
    """Return a state as plain JSON types; add what is wrong with it to the problems."""
    values: dict[str, object] = {}
    fallbacks: dict[str, object] = {}
    versions: dict[str, str] = {}
    for kind in kinds:
        degraded = kind in state.degraded
        if degraded:
            problems.append(f"agent {state.agent_id!r}: {kind} could not be read: {state.outcome(kind).name}")
        else:
            versions[kind] = str(state.version(kind))
        try:
            (fallbacks if degraded else values)[kind] = encode_value(state[kind])
        except (FragmentAbsent, FragmentUnavailable):
            continue  # Its outcome says so.
        except (FragmentUndecodable, NotJson) as error:
            problems.append(f"agent {state.agent_id!r}: {kind} cannot be shown: {error}")
    return {
        "agent_id": state.agent_id,
        "found": True,
        "complete": state.complete,
        "outcomes": {kind: state.outcome(kind).name for kind in kinds},
        "versions": versions,
        "values": values,
        "fallbacks": fallbacks,
    }


@click.command()
@click.argument("agent_id", metavar="ID")
@click.option("--kind", "kinds", multiple=True, required=True, metavar="KIND", help="The kind to save; repeatable.")
@click.option(
    "--value", "values", multiple=True, metavar="JSON", help="Its value as JSON, or @FILE with JSON in it; repeatable."
)
@click.option(
    "--bytes-file", "files", multiple=True, metavar="FILE", help="Its value as bytes: what is in FILE; repeatable."
)
@deadline_option("save_deadline_ms of the topology")
@endpoint_or_file_option
@json_option("Print the result as one JSON object.")
def save(
    agent_id: str,
    kinds: tuple[str, ...],
    values: tuple[str, ...],
    files: tuple[str, ...],
    deadline_s: float | None,
    topology: str,
    as_json: bool,
) -> int:
    """Save fragments of one agent; other kinds of it stay as they are. Prints the new versions.

    The first --kind takes the first --value, the second the second, and so on. `-` as a file is standard input.
    {"$bytes": "base64"} in JSON stands for bytes. Kinds of one store are saved together or not at all.

    \b
    Example:
      dawnchorus save agent-42 --kind context --value '{"topic": "flights"}'
      dawnchorus save agent-42 --kind context --value @context.json --kind session --value '{"turns": 3}'
      dawnchorus save agent-42 --kind history --bytes-file history.bin
    """
    if values and files:
        raise click.UsageError(
            "give --value or --bytes-file, not both; --value '{\"$bytes\": ...}' takes bytes as well"
        )
    given = len(values) + len(files)
    if given != len(kinds):
        raise click.UsageError(f"{len(kinds)} --kind, but {given} --value or --bytes-file: one of them for each kind")
    if len(set(kinds)) < len(kinds):
        raise click.UsageError("a kind is named twice")
    parsed = [_parse_argument(value) for value in values] if values else [_read_file(file) for file in files]
    fragments = dict(zip(kinds, parsed, strict=True))
    return run(_save(agent_id, fragments, deadline_s, topology, as_json))


def _parse_argument(argument: str) -> object:
    try:
        return parse_value(_read_file(argument[1:]) if argument.startswith("@") else os.fsencode(argument))
    except UnreadableJson as error:
        shown = argument if len(argument) <= 60 else f"{argument[:60]}..."
        raise click.UsageError(f"--value {shown}: {error}") from None


def _read_file(path: str) -> bytes:
    # A value over the limit is rejected later with a word of its own; a device without an end must not fill the memory.
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            return file.read(LINE_BYTES_MAX)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None


async def _save(
    agent_id: str, fragments: dict[str, object], deadline_s: float | None, topology: str, as_json: bool
) -> int:
    async with connect(topology, connect_deadline_s=CONNECT_DEADLINE_S) as cluster:
        try:
            saved = await cluster.save(agent_id, fragments, deadline_s=deadline_s)
        except SaveError as error:
            if as_json:
                print_json(_describe_failure(error, "saved"))
            raise
    versions = {kind: str(saved.versions[kind]) for kind in fragments}
    if as_json:
        print_json({"agent_id": agent_id, "saved": True, "versions": versions, "write_id": saved.write_id})
    else:
        for kind, version in versions.items():
            click.echo(f"{kind} {version}")
    return 0


def _describe_failure(error: SaveError, what: str) -> dict[str, object]:
    described: dict[str, object] = {
        "agent_id": error.agent_id,
        what: False,
        "write_id": error.write_id,
        "error": str(error),
    }
    if isinstance(error, SaveIncomplete):
        described["versions"] = {kind: str(version) for kind, version in error.saved.items()}
        described["rejected"] = error.rejected
        described["unknown"] = error.unknown
    return described


@click.command()
@click.argument("agent_id", metavar="ID")
@click.option(
    "--kind",
    "--kinds",
    "kinds",
    multiple=True,
    metavar="KIND[,KIND...]",
    callback=_split_kinds,
    help="Delete only these kinds (default: the whole agent).",
)
@deadline_option("save_deadline_ms of the topology")
@endpoint_or_file_option
@json_option("Print the result as one JSON object.")
def delete(agent_id: str, kinds: tuple[str, ...], deadline_s: float | None, topology: str, as_json: bool) -> int:
    """Delete one agent, or some of its kinds. Deleting what is not there succeeds.

    \b
    Example:
      dawnchorus delete agent-42
      dawnchorus delete agent-42 --kind session --kind context
    """
    return run(_delete(agent_id, kinds or None, deadline_s, topology, as_json))


async def _delete(
    agent_id: str, kinds: tuple[str, ...] | None, deadline_s: float | None, topology: str, as_json: bool
) -> int:
    async with connect(topology, connect_deadline_s=CONNECT_DEADLINE_S) as cluster:
        try:
            deleted = await cluster.delete(agent_id, kinds=kinds, deadline_s=deadline_s)
        except SaveError as error:
            if as_json:
                print_json(_describe_failure(error, "deleted"))
            raise
    # A version is that of the write that deleted something, 0 where there was nothing.
    versions = {kind: str(version) for kind, version in deleted.versions.items() if version}
    if as_json:
        print_json({"agent_id": agent_id, "deleted": bool(versions), "write_id": deleted.write_id})
    elif not versions:
        click.echo(f"agent {agent_id!r}: there was nothing to delete")
    else:
        click.echo(
            f"agent {agent_id!r}: deleted" if kinds is None else f"agent {agent_id!r}: deleted {', '.join(versions)}"
        )
    return 0
