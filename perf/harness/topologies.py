"""The clusters that a storm runs on, as topology files: `one-store`, `five-stores` and `default`.

`default` is the repository's topology.toml in meaning, with free ports, a data directory of its own and long
deadlines. It is kept here as text because an installed package has no repository beside it; a test compares the two.
"""

from __future__ import annotations

import atexit
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from .workload import FIVE_KINDS, Workload, WorkloadError

__all__ = [
    "TOPOLOGY_NAMES",
    "TopologyName",
    "default_text",
    "free_ports",
    "node_count",
    "one_node_text",
    "store_of_kind",
    "write_topology",
]

TopologyName = Literal["one-store", "five-stores", "default"]
TOPOLOGY_NAMES: tuple[TopologyName, ...] = get_args(TopologyName)

DEADLINE_MS = 60_000
"""Long: a storm measures until everything has come, also on a slow machine."""

_HELD_PORTS_MAX = 64

_held_ports: deque[socket.socket] = deque()

_DEFAULT_STORES = {
    "profile": "identity",
    "preference": "identity",
    "session": "live",
    "context": "live",
    "history": "archive",
}
_DEFAULT_FRAGMENTS = """
[stores.identity]
[stores.live]
[stores.archive]

[fragments.profile]
store = "identity"
required = true
[fragments.preference]
store = "identity"
fallback = { language = "en" }
[fragments.session]
store = "live"
ttl_s = 86400
[fragments.context]
store = "live"
[fragments.history]
store = "archive"
"""
_DEFAULT_NODES = (("identity-1", "identity"), ("live-1", "live"), ("archive-1", "archive"))


def store_of_kind(topology: TopologyName, kinds: Sequence[str]) -> dict[str, str]:
    """Return the store of each kind; raises `WorkloadError` for a kind that the topology does not have."""
    if topology == "one-store":
        return dict.fromkeys(kinds, "state")
    unknown = [kind for kind in kinds if kind not in FIVE_KINDS]
    if unknown:
        raise WorkloadError(
            f"the topology {topology} has no kind {', '.join(unknown)}: it has {', '.join(FIVE_KINDS)};"
            " the topology one-store takes any"
        )
    return {kind: _DEFAULT_STORES[kind] if topology == "default" else kind for kind in kinds}


def node_count(topology: TopologyName) -> int:
    """Return how many node processes the topology has."""
    return {"one-store": 2, "five-stores": 5, "default": 3}[topology]


def write_topology(topology: TopologyName, workload: Workload, directory: Path) -> Path:
    """Write the topology file for these agents into the directory, with free loopback ports; returns its path."""
    store_of_kind(topology, workload.kinds)
    endpoints = [f"tcp://127.0.0.1:{port}" for port in free_ports(node_count(topology))]
    if topology == "default":
        if "profile" not in workload.kinds_of_all:
            raise WorkloadError("every agent needs a profile, which the topology default requires; one-store does not")
        text = default_text("storm", "data", DEADLINE_MS, DEADLINE_MS, endpoints)
    elif topology == "one-store":
        text = _one_store_text(workload, endpoints)
    else:
        text = _five_stores_text(workload, endpoints)
    path = directory / "topology.toml"
    path.write_text(text)
    return path


def default_text(
    name: str,
    data_dir: str,
    wake_deadline_ms: int,
    save_deadline_ms: int,
    endpoints: Sequence[str],
    *,
    ipc: bool = True,
) -> str:
    """Return the default topology with these settings; `endpoints` are those of identity-1, live-1 and archive-1.

    Without `ipc` nodes can be reached over TCP alone.
    """
    nodes = [
        _node_text(node, endpoint, store) for (node, store), endpoint in zip(_DEFAULT_NODES, endpoints, strict=True)
    ]
    cluster = _cluster_text(name, data_dir, wake_deadline_ms, save_deadline_ms) + ("" if ipc else "ipc = false\n")
    return cluster + _DEFAULT_FRAGMENTS + "".join(nodes)


def one_node_text(name: str, port: int, *, ipc: bool = True) -> str:
    """Return the smallest topology: the kind `session` in the store `live` on the node live-1."""
    cluster = f'[cluster]\nname = "{name}"\ndata_dir = "data"\nipc = {str(ipc).lower()}\n'
    kinds = '[stores.live]\n[fragments.session]\nstore = "live"\n'
    return cluster + kinds + _node_text("live-1", f"tcp://127.0.0.1:{port}", "live")


def _one_store_text(workload: Workload, endpoints: Sequence[str]) -> str:
    kinds = "".join(_fragment_text(kind, "state", workload) for kind in workload.kinds)
    nodes = [_node_text(f"state-{number}", endpoint, "state") for number, endpoint in enumerate(endpoints, 1)]
    return _cluster_text("storm", "data", DEADLINE_MS, DEADLINE_MS) + "\n[stores.state]\n" + kinds + "".join(nodes)


def _five_stores_text(workload: Workload, endpoints: Sequence[str]) -> str:
    # All five stand there even when the file has fewer kinds: the number of nodes is part of the name.
    stores = "\n" + "".join(f"[stores.{kind}]\n" for kind in FIVE_KINDS)
    kinds = "".join(_fragment_text(kind, kind, workload) for kind in FIVE_KINDS)
    nodes = [_node_text(f"{kind}-1", endpoint, kind) for kind, endpoint in zip(FIVE_KINDS, endpoints, strict=True)]
    return _cluster_text("storm", "data", DEADLINE_MS, DEADLINE_MS) + stores + kinds + "".join(nodes)


def _cluster_text(name: str, data_dir: str, wake_deadline_ms: int, save_deadline_ms: int) -> str:
    return (
        f'[cluster]\nname = "{name}"\ndata_dir = "{data_dir}"\n'
        f"wake_deadline_ms = {wake_deadline_ms}\nsave_deadline_ms = {save_deadline_ms}\n"
    )


def _fragment_text(kind: str, store: str, workload: Workload) -> str:
    # An agent without a required kind counts as not found: required is only what every agent has.
    required = "required = true\n" if kind in workload.kinds_of_all[:1] else ""
    return f'[fragments."{kind}"]\nstore = "{store}"\n{required}'


def _node_text(name: str, endpoint: str, store: str) -> str:
    return f'\n[[nodes]]\nname = "{name}"\nendpoint = "{endpoint}"\nstores = ["{store}"]\n'


def _let_go_of_ports() -> None:
    while _held_ports:
        _held_ports.popleft().close()


atexit.register(_let_go_of_ports)


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are for the caller alone, until 64 more were asked for or this process ends.

    Each stays bound here and never listens. To Linux that hinders no listener that sets SO_REUSEADDR, as libzmq,
    asyncio and `create_server` do; but whoever asks for any port gets another, and so does a connection that goes out.
    """
    held = [socket.socket() for _ in range(count)]
    for port in held:
        port.bind(("127.0.0.1", 0))
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held_ports.extend(held)
    while len(_held_ports) > max(count, _HELD_PORTS_MAX):
        _held_ports.popleft().close()
    return [int(port.getsockname()[1]) for port in held]
