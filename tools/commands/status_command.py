"""The command `status`: every node is asked for its health; one that does not answer is shown as down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ...router.client.connect import connect
from ...wire.cluster.topology import NodeSpec, Topology
from ...wire.cluster.topology_file import load_topology
from ...wire.errors import DawnchorusError
from ...wire.protocol.messages import ShardStatus, StatusReply
from ..console.async_runner import run
from ..console.options import CONNECT_DEADLINE_S, deadline_option, endpoint_or_file_option, json_option
from ..console.output import format_bytes, print_json, seconds
from ..console.tables import result_console

__all__ = ["describe", "render", "status"]

DEADLINE_S: Final = 2.0
"""A node that does not answer so small a question for this long is of no use to anybody who wakes agents."""

SERVING: Final = "serving"
"""A shard's state where nothing is wrong with it (wire.protocol.messages.ShardStatus)."""

_CLOCKS_DIFFER_MS: Final = 2_000
"""Less than this between a shard's clock and its host's is not worth a word (nodes.wall_clock, JUMP_MS)."""

_WIDE_COLUMNS: Final = 100
"""Terminals as wide as this have room for endpoints as well."""

Answers = Mapping[str, StatusReply | DawnchorusError]


@click.command()
@deadline_option(f"{DEADLINE_S:g}")
@endpoint_or_file_option
@json_option("Print one JSON object; versions in it are strings.")
def status(deadline_s: float | None, topology: str, as_json: bool) -> int:
    """Show the health of each node: its process, agents, shards, bytes, and what it has counted since its start.

    The exit code is 1 if a node does not answer or takes no more clients, a shard is not served, or nodes serve
    different topologies.

    \b
    Example:
      dawnchorus status
      dawnchorus status --topology tcp://127.0.0.1:7411 --json
    """
    return run(_status(deadline_s or DEADLINE_S, topology, as_json))


async def _status(deadline_s: float, topology: str, as_json: bool) -> int:
    source = topology if "://" in topology else load_topology(topology)
    async with connect(source, connect_deadline_s=CONNECT_DEADLINE_S) as cluster:
        answers = await cluster.status(deadline_s)
        nodes = cluster.topology.nodes
        name = cluster.topology.name
    digest = source.digest if isinstance(source, Topology) else ""
    if as_json:
        print_json(describe(name, nodes, answers, digest))
    else:
        render(name, nodes, answers, result_console(), digest)
    return 0 if _all_healthy(nodes, answers) else 1


def _all_healthy(nodes: Mapping[str, NodeSpec], answers: Answers) -> bool:
    return all(_is_healthy(answers.get(node)) for node in nodes) and len(_served_topologies(answers)) <= 1


def _served_topologies(answers: Answers) -> dict[str, list[str]]:
    """Return the nodes by the topology that they serve, the one of most nodes first."""
    served: dict[str, list[str]] = {}
    for node, answer in answers.items():
        if isinstance(answer, StatusReply) and answer.topology:
            served.setdefault(answer.topology, []).append(node)
    return dict(sorted(served.items(), key=lambda entry: -len(entry[1])))


def _topology_problems(answers: Answers, digest: str) -> list[str]:
    """Return problems with the topologies that nodes serve; `digest` is that of the file at hand, "" for none."""
    served = _served_topologies(answers)
    if not served:
        return []
    (most, those), *others = served.items()
    found = [
        f"{', '.join(nodes)}: serves topology {other}, and {', '.join(those)} {most}: the file was changed in between;"
        " stop all nodes, and start them together"
        for other, nodes in others
    ]
    if digest and not others and digest != most:
        found.append(
            "the topology file here is not what the nodes serve: if its changes are wanted, restart `dawnchorus up`"
            " with it; otherwise use the file that `up` was started with"
        )
    return found


def _is_healthy(answer: StatusReply | DawnchorusError | None) -> bool:
    return (
        isinstance(answer, StatusReply)
        and answer.takes_clients
        and all(shard.state == SERVING and not shard.last_error and not shard.notice for shard in answer.shards)
    )


def describe(name: str, nodes: Mapping[str, NodeSpec], answers: Answers, digest: str = "") -> dict[str, object]:
    """Return the status as plain JSON types, nodes in the topology's order; `digest` is that of the file at hand."""
    return {
        "cluster": name,
        "healthy": _all_healthy(nodes, answers),
        "topology": digest,
        "topology_problems": _topology_problems(answers, digest),
        "nodes": [_describe_node(spec, answers.get(node)) for node, spec in nodes.items()],
    }


def _describe_node(spec: NodeSpec, answer: StatusReply | DawnchorusError | None) -> dict[str, object]:
    described: dict[str, object] = {"node": spec.name, "endpoint": spec.endpoint}
    if not isinstance(answer, StatusReply):
        return {**described, "up": False, "error": _why_down(answer)}
    return {
        **described,
        "up": True,
        "pid": answer.pid,
        "topology": answer.topology,
        "uptime_ms": answer.uptime_ms,
        "rss_bytes": answer.rss_bytes,
        "agents": sum(shard.agents for shard in answer.shards),
        "disk_bytes": sum(shard.disk_bytes for shard in answer.shards),
        "clients": answer.clients,
        "takes_clients": answer.takes_clients,
        "descriptors": answer.descriptors,
        "descriptors_max": answer.descriptors_max,
        "ipc": answer.ipc,
        "counters": answer.counters,
        "shards": [_describe_shard(shard) for shard in answer.shards],
    }


def _describe_shard(shard: ShardStatus) -> dict[str, object]:
    return {
        "store": shard.store,
        "shard": shard.shard,
        "epoch": shard.epoch,
        "version": str(shard.version),
        "agents": shard.agents,
        "disk_bytes": shard.disk_bytes,
        "state": shard.state,
        "last_error": shard.last_error,
        "notice": shard.notice,
        "clock_ahead_ms": shard.clock_ahead_ms,
    }


def _why_down(answer: DawnchorusError | None) -> str:
    return "no answer" if answer is None else str(answer)


def render(name: str, nodes: Mapping[str, NodeSpec], answers: Answers, console: Console, digest: str = "") -> None:
    """Print the cluster's status as tables: nodes, what they counted, and what is wrong."""
    up = {node: answer for node in nodes if isinstance(answer := answers.get(node), StatusReply)}
    table = Table(title=f"cluster {name}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    wide = console.width >= _WIDE_COLUMNS
    for column in ("node", "endpoint", "state") if wide else ("node", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("pid", "up for", "agents", "shards", "on disk", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for node, spec in nodes.items():
        answer = up.get(node)
        state = "[red]down[/red]" if answer is None else "up"
        cells = ["-"] * 6 if answer is None else _cells(answer)
        table.add_row(node, *[spec.endpoint] * wide, state, *cells)
    console.print(table)
    counted = [counter for counter in _counter_names(up) if any(answer.counters.get(counter) for answer in up.values())]
    if counted:
        counters = Table(
            title="counted since each node started", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        counters.add_column("")
        for node in up:
            counters.add_column(node, justify="right")
        for counter in counted:
            row = (f"{answer.counters.get(counter, 0):,}" for answer in up.values())
            counters.add_row(counter.replace("_", " "), *row)
        console.print(counters)
    for problem in [*_problems(nodes, answers), *_topology_problems(answers, digest), *_clocks(up)]:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)


def _cells(answer: StatusReply) -> tuple[str, ...]:
    serving = sum(shard.state == SERVING for shard in answer.shards)
    owned = len(answer.shards)
    return (
        str(answer.pid),
        seconds(answer.uptime_ms / 1000),
        f"{sum(shard.agents for shard in answer.shards):,}",
        str(owned) if serving == owned else f"[red]{serving} of {owned}[/red]",
        format_bytes(sum(shard.disk_bytes for shard in answer.shards)),
        format_bytes(answer.rss_bytes),
    )


def _counter_names(up: Mapping[str, StatusReply]) -> list[str]:
    # Nodes of another version may count other things: every name once, in the order in which they come.
    return list(dict.fromkeys(counter for answer in up.values() for counter in answer.counters))


def _problems(nodes: Mapping[str, NodeSpec], answers: Answers) -> list[str]:
    found: list[str] = []
    for node in nodes:
        answer = answers.get(node)
        if not isinstance(answer, StatusReply):
            found.append(f"{node} is down: {_why_down(answer)}")
            continue
        if not answer.takes_clients:
            share = f"{answer.descriptors:,} of its {answer.descriptors_max:,} descriptors"
            found.append(f"{node} takes no more clients: {share} are in use")
        found += [
            f"{node}: shard {shard.shard} of store {shard.store} is not served: {shard.state}"
            for shard in answer.shards
            if shard.state != SERVING
        ]
        found += [
            f"{node}: the last save to shard {shard.shard} of store {shard.store} failed: {shard.last_error}"
            for shard in answer.shards
            if shard.state == SERVING and shard.last_error
        ]
        found += [
            f"{node}: shard {shard.shard} of store {shard.store}: {shard.notice}"
            for shard in answer.shards
            if shard.notice
        ]
    return found


def _clocks(up: Mapping[str, StatusReply]) -> list[str]:
    """Say where shards have another time than their host: expiry goes by theirs."""
    found: list[str] = []
    for node, answer in up.items():
        ahead = [shard.clock_ahead_ms for shard in answer.shards if shard.clock_ahead_ms > _CLOCKS_DIFFER_MS]
        behind = [-shard.clock_ahead_ms for shard in answer.shards if shard.clock_ahead_ms < -_CLOCKS_DIFFER_MS]
        if ahead:
            found.append(
                f"{node}: the clocks of {len(ahead)} shards are ahead of its host's, by up to"
                f" {seconds(max(ahead) / 1000)}; they go on, and what expires still lives as long as was said"
            )
        if behind:
            found.append(
                f"{node}: its host's clock is ahead of those of {len(behind)} shards, by up to"
                f" {seconds(max(behind) / 1000)}; they catch up by themselves once that clock has run for five"
                " minutes without being set; until then what expires lives that much longer"
            )
    return found
