"""Reads topology.toml and explains errors in it.

Each error is one TopologyError in one line: `FILE: KEY: what is wrong; permitted: what would be right`. The key is
dotted as TOML has it (`stores.live.shards`); a node's has its place in the file, counted from 0, and its name if that
is known (`nodes[1].endpoint (node "live-1")`). The file is read from the top down and the first error ends it: what
follows one error is often only its echo.

Types are msgspec's work (`msgspec.convert`); names, ranges, choices and references between sections are checked here,
each against the rule that is also in its message.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from ..errors import TopologyError
from ..protocol.limits import DEADLINE_S_MAX
from .toml_tables import (
    NAME_RULE,
    Place,
    Rules,
    TableError,
    alternatives,
    did_you_mean,
    named_tables,
    quoted_key,
    read_table,
    require_choice,
    require_name,
    require_range,
    shown,
    toml_type,
)
from .topology import (
    ENDPOINT_RULE,
    FALLBACK_BYTES_MAX,
    KINDS_MAX,
    NODES_MAX,
    SHARDS_MAX,
    SHARDS_TOTAL_MAX,
    STORES_MAX,
    TOPOLOGY_FILE_BYTES_MAX,
    TTL_S_MAX,
    TTL_S_MIN,
    AdmissionSpec,
    BreakerSpec,
    KindSpec,
    NodeSpec,
    RetrySpec,
    StoreSpec,
    Topology,
    parse_endpoint,
)

__all__ = ["load_topology"]

_DEADLINE_MS_MAX: Final = DEADLINE_S_MAX * 1_000

SYNC_INTERVAL_MS_MAX: Final = 60_000
"""A minute of saves is the most that durability "async" may lose with the machine."""

_ENGINE_PATTERN: Final = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.]+)?", re.ASCII)

_DEADLINE_RULE: Final = f"an integer from 1 to {_DEADLINE_MS_MAX} (milliseconds)"

_CLUSTER_RULES: Final[Rules] = {
    "name": NAME_RULE,
    "data_dir": "the path of a directory, absolute or relative to this file",
    "wake_deadline_ms": _DEADLINE_RULE,
    "save_deadline_ms": _DEADLINE_RULE,
    "ipc": "true or false",
}
_STORE_RULES: Final[Rules] = {
    "engine": 'the name of an engine that the nodes have ("lmdb"), or "package.module:factory"',
    "shards": f"an integer from 1 to {SHARDS_MAX}",
    "durability": '"sync" or "async"',
    "sync_interval_ms": f"an integer from 1 to {SYNC_INTERVAL_MS_MAX} (milliseconds)",
    "wake": '"eager" or "lazy"',
}
_KIND_RULES: Final[Rules] = {
    "store": "the name of a store",
    "required": "true or false",
    "ttl_s": f"seconds from {TTL_S_MIN} to {TTL_S_MAX:.0f}, or none for ever",
    "fallback": f"a value of at most {FALLBACK_BYTES_MAX} bytes as msgpack, its integers of 64 bits",
}
_NODE_RULES: Final[Rules] = {
    "name": NAME_RULE,
    "endpoint": ENDPOINT_RULE,
    "stores": "a list of names of stores",
}
_Bounds = Mapping[str, tuple[float, float, str]]
"""The least and the largest value of a key, and the rule in words."""

_BREAKER: Final[_Bounds] = {
    "failure_share": (0.001, 1.0, "a share from 0.001 to 1"),
    "requests_min": (1, 1_000_000, "an integer from 1 to 1000000"),
    "window_s": (0.1, 3_600.0, "seconds from 0.1 to 3600"),
    "consecutive_timeouts": (1, 1_000_000, "an integer from 1 to 1000000"),
    "retry_after_s": (0.01, 3_600.0, "seconds from 0.01 to 3600"),
}
_RETRIES: Final[_Bounds] = {
    "share": (0.0, 1.0, "a share from 0 to 1"),
    "per_s": (0.0, 1_000_000.0, "a number from 0 to 1000000"),
    "jitter_ms": (0, 10_000, "an integer from 0 to 10000 (milliseconds)"),
}
_ADMISSION: Final[_Bounds] = {
    "in_flight_max": (1, 1_000_000, "an integer from 1 to 1000000"),
    "slow_share": (0.01, 1.0, "a share from 0.01 to 1"),
    "queue_share": (0.01, 1.0, "a share from 0.01 to 1"),
}
_SECTIONS: Final = {
    "cluster": "[cluster]",
    "stores": "[stores.NAME]",
    "fragments": "[fragments.KIND]",
    "nodes": "[[nodes]]",
    "breaker": "[breaker]",
    "retries": "[retries]",
    "admission": "[admission]",
}
_OPTIONAL: Final = {"breaker", "retries", "admission"}
_DEFAULTS: Final = Topology("")


class _ClusterTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    data_dir: str
    wake_deadline_ms: int = 1_000
    save_deadline_ms: int = 10_000
    ipc: bool = True


def load_topology(path: str | os.PathLike[str]) -> Topology:
    """Read and check a topology file.

    A relative `data_dir` is resolved against the directory of the file itself: if `path` is a symbolic link, of the
    file that it leads to. `~` is the user's home. A fallback's dates and times without a time zone become strings, as
    they would on the wire.

    Raises:
        TopologyError: the file cannot be read, or has an error; the message names file, key and permitted values.
    """
    file = os.fspath(path)
    try:
        return _read_topology(_parse(_read_text(file)), Path(file))
    except TableError as error:
        raise TopologyError(f"{file}: {error}") from error.__cause__


def _read_text(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            raw = opened.read(TOPOLOGY_FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise TableError(
            "there is no such file; go to the directory of the cluster, or give --topology or DAWNCHORUS_TOPOLOGY"
        ) from error
    except IsADirectoryError as error:
        raise TableError("this is a directory; permitted: the path of a topology file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TableError(f"cannot be read: {reason}; permitted: the path of a readable topology file") from error
    if len(raw) > TOPOLOGY_FILE_BYTES_MAX:
        raise TableError(f"the file is too large; permitted: at most {TOPOLOGY_FILE_BYTES_MAX} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TableError(f"line {line} is not UTF-8; permitted: TOML 1.0, which is UTF-8") from error


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise TableError("not valid TOML: nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and int()'s own for thousands of digits
        raise TableError(f"not valid TOML: {error}") from error


def _read_topology(document: dict[str, Any], file: Path) -> Topology:
    for section in document:
        if section not in _SECTIONS:
            hint = did_you_mean(section, _SECTIONS)
            raise TableError(f"{quoted_key(section)}: unknown key{hint}; permitted: {', '.join(_SECTIONS.values())}")
    for section, header in _SECTIONS.items():
        if section not in document and section not in _OPTIONAL:
            raise TableError(f"{section}: missing; permitted: a section {header}")
    cluster = _read_cluster(document["cluster"])
    stores = _read_stores(document["stores"])
    kinds = _read_kinds(document["fragments"], stores)
    nodes = _read_nodes(document["nodes"], stores)
    _require_used(stores, kinds, nodes)
    return Topology(
        name=cluster.name,
        data_dir=os.path.abspath(Path(os.path.realpath(file)).parent / os.path.expanduser(cluster.data_dir)),
        wake_deadline_ms=cluster.wake_deadline_ms,
        save_deadline_ms=cluster.save_deadline_ms,
        stores=stores,
        kinds=kinds,
        nodes=nodes,
        ipc=cluster.ipc,
        breaker=_read_bounded(document, "breaker", _DEFAULTS.breaker, _BREAKER),
        retries=_read_bounded(document, "retries", _DEFAULTS.retries, _RETRIES),
        admission=_read_bounded(document, "admission", _DEFAULTS.admission, _ADMISSION),
    )


_B = TypeVar("_B", BreakerSpec, RetrySpec, AdmissionSpec)


def _read_bounded(document: dict[str, Any], section: str, default: _B, bounds: _Bounds) -> _B:
    """Read an optional section of numbers, each with its bounds; `default` itself if they are the same.

    A field that is its default is left out of the encoded topology, and so out of its digest: msgspec looks for the
    same object.
    """
    place = Place(section)
    rules = {key: rule for key, (_low, _high, rule) in bounds.items()}
    spec = read_table(place, document.get(section, {}), type(default), rules, _SECTIONS[section])
    for key, (low, high, rule) in bounds.items():
        require_range(place, key, getattr(spec, key), low, high, rule)
    return default if spec == default else spec


def _read_cluster(table: Any) -> _ClusterTable:
    place = Place("cluster")
    cluster = read_table(place, table, _ClusterTable, _CLUSTER_RULES, "[cluster]")
    require_name(place, "name", cluster.name)
    if not cluster.data_dir or "\0" in cluster.data_dir:
        place.reject("data_dir", f"{shown(cluster.data_dir)} is no path; permitted: {_CLUSTER_RULES['data_dir']}")
    for field in ("wake_deadline_ms", "save_deadline_ms"):
        require_range(place, field, getattr(cluster, field), 1, _DEADLINE_MS_MAX, _DEADLINE_RULE)
    return cluster


def _read_stores(section: Any) -> dict[str, StoreSpec]:
    stores: dict[str, StoreSpec] = {}
    for place, name, table in named_tables("stores", _SECTIONS["stores"], section, STORES_MAX):
        spec = _read_store(place, table, f"[stores.{name}]")
        require_choice(place, "durability", spec.durability, ("sync", "async"))
        rule = _STORE_RULES["sync_interval_ms"]
        require_range(place, "sync_interval_ms", spec.sync_interval_ms, 1, SYNC_INTERVAL_MS_MAX, rule)
        require_choice(place, "wake", spec.wake, ("eager", "lazy"))
        require_range(place, "shards", spec.shards, 1, SHARDS_MAX, _STORE_RULES["shards"])
        stores[name] = spec
    total = sum(spec.shards for spec in stores.values())
    if total > SHARDS_TOTAL_MAX:
        raise TableError(f"stores: all together have {total} shards; permitted: at most {SHARDS_TOTAL_MAX}")
    return stores


def _read_store(place: Place, table: Any, header: str) -> StoreSpec:
    """Read one store; the table in it that has its engine's name has the engine's options."""
    options: Any = {}
    values = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
    engine = values.get("engine", StoreSpec().engine)
    if isinstance(engine, str) and engine in values and engine not in _STORE_RULES:
        options = values[engine]
        table = {key: value for key, value in values.items() if key != engine}
        if not isinstance(options, dict):
            place.reject(engine, f"must be a table, not {toml_type(options)}; permitted: the options of this engine")
    spec = read_table(place, table, StoreSpec, _STORE_RULES, header)
    if _ENGINE_PATTERN.fullmatch(spec.engine) is None:
        place.reject("engine", f"{shown(spec.engine)} is no name of one; permitted: {_STORE_RULES['engine']}")
    if not options:
        return spec
    return msgspec.structs.replace(spec, options=msgspec.msgpack.decode(msgspec.msgpack.encode(options)))


def _read_kinds(section: Any, stores: Mapping[str, StoreSpec]) -> dict[str, KindSpec]:
    kinds: dict[str, KindSpec] = {}
    for place, kind, table in named_tables("fragments", _SECTIONS["fragments"], section, KINDS_MAX):
        spec = read_table(place, table, KindSpec, _KIND_RULES, f"[fragments.{kind}]")
        _require_store(place, "store", spec.store, stores)
        if spec.ttl_s is not None:
            require_range(place, "ttl_s", spec.ttl_s, TTL_S_MIN, TTL_S_MAX, _KIND_RULES["ttl_s"])
        if spec.required and stores[spec.store].wake == "lazy":
            lazy = f'stores.{spec.store}.wake is "lazy"'
            place.reject("required", f'no wake asks for it: {lazy}; permitted: false, or a store that is "eager"')
        kinds[kind] = (
            msgspec.structs.replace(spec, fallback=_through_msgpack(place, spec)) if spec.has_fallback else spec
        )
    return kinds


def _through_msgpack(place: Place, spec: KindSpec) -> Any:
    try:
        encoded = msgspec.msgpack.encode(spec.fallback)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        place.reject("fallback", f"cannot be encoded as msgpack: {error}; permitted: {_KIND_RULES['fallback']}")
    if len(encoded) > FALLBACK_BYTES_MAX:
        place.reject("fallback", f"has {len(encoded)} bytes as msgpack; permitted: {_KIND_RULES['fallback']}")
    return msgspec.msgpack.decode(encoded)


def _read_nodes(section: Any, stores: Mapping[str, StoreSpec]) -> dict[str, NodeSpec]:
    if not isinstance(section, list):
        raise TableError(f"nodes: must be a list of tables, not {toml_type(section)}; permitted: sections [[nodes]]")
    tables = cast("Sequence[Any]", section)
    if not 1 <= len(tables) <= NODES_MAX:
        raise TableError(f"nodes: there are {len(tables)} nodes; permitted: 1 to {NODES_MAX} sections [[nodes]]")
    nodes: dict[str, NodeSpec] = {}
    owner_of_endpoint: dict[tuple[str, int], str] = {}
    for index, table in enumerate(tables):
        place = Place(f"nodes[{index}]", _node_note(table))
        node = read_table(place, table, NodeSpec, _NODE_RULES, "[[nodes]]")
        require_name(place, "name", node.name)
        if node.name in nodes:
            first = list(nodes).index(node.name)
            place.reject("name", f"nodes[{first}] has this name, too; permitted: a name that no other node has")
        owner = owner_of_endpoint.setdefault(_read_endpoint(place, node.endpoint), node.name)
        if owner != node.name:
            place.reject(
                "endpoint", f'node "{owner}" has {node.endpoint}, too; permitted: an endpoint that no other node has'
            )
        _require_stores(place, node.stores, stores)
        nodes[node.name] = node
    return nodes


def _node_note(table: Any) -> str:
    name = cast("dict[str, Any]", table).get("name") if isinstance(table, dict) else None
    return f" (node {shown(name)})" if isinstance(name, str) else ""


def _read_endpoint(place: Place, endpoint: str) -> tuple[str, int]:
    try:
        host, port = parse_endpoint(endpoint)
    except ValueError as error:
        place.reject("endpoint", f"{error}; permitted: {ENDPOINT_RULE}")
    return ("127.0.0.1" if host == "localhost" else host), port


def _require_stores(place: Place, listed: tuple[str, ...], stores: Mapping[str, StoreSpec]) -> None:
    if not listed:
        place.reject("stores", f"is empty, the node would serve nothing; permitted: {alternatives(stores)}")
    for index, store in enumerate(listed):
        if store in listed[:index]:
            place.reject("stores", f"names {shown(store)} twice; permitted: each store once")
        _require_store(place, "stores", store, stores)


def _require_used(
    stores: Mapping[str, StoreSpec], kinds: Mapping[str, KindSpec], nodes: Mapping[str, NodeSpec]
) -> None:
    filled = {spec.store for spec in kinds.values()}
    served = {store for node in nodes.values() for store in node.stores}
    for store in stores:
        if store not in filled:
            raise TableError(
                f"stores.{store}: no kind is kept in it, so that nothing could be saved there; "
                f'permitted: a store with at least one [fragments.KIND] that has store = "{store}"'
            )
        if store not in served:
            raise TableError(
                f"stores.{store}: no node serves it; permitted: a store that at least one of [[nodes]] lists"
            )


def _require_store(place: Place, field: str, store: str, stores: Mapping[str, StoreSpec]) -> None:
    if store not in stores:
        hint = did_you_mean(store, stores)
        place.reject(field, f"unknown store {shown(store)}{hint}; permitted: {alternatives(stores)}")
