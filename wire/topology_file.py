"""Reads topology.toml and explains mistakes in it.

Each mistake is one TopologyError in one line: `FILE: KEY: what is wrong; permitted: what would be right`. The key is
dotted as TOML has it (`stores.live.shards`); a node's has its place in the file, counted from 0, and its name if that
is known (`nodes[1].endpoint (node "live-1")`). The file is read from the top down and the first mistake ends it: what
follows one mistake is often only its echo.

Types are msgspec's work (`msgspec.convert`); names, ranges, choices and references between sections are checked here,
each against the rule that also stands in its message.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, cast

import msgspec

from .errors import TopologyError
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
    KindSpec,
    NodeSpec,
    StoreSpec,
    Topology,
    parse_endpoint,
)

__all__ = ["load_topology"]

DEADLINE_MS_MAX: Final = 600_000
"""Ten minutes: whoever waits longer wants a batch job, not a wake."""

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
"""Names become folder names and words of the command line; 63 characters are also a DNS label's (RFC 1035)."""

SYNC_INTERVAL_MS_MAX: Final = 60_000
"""What durability "async" may lose with the machine: a minute of saves at most."""

_NAME_RULE: Final = "1 to 63 characters, a letter first: a-z, 0-9, _ and -"
_DEADLINE_RULE: Final = f"an integer from 1 to {DEADLINE_MS_MAX} (milliseconds)"

_Rules = Mapping[str, str]
_CLUSTER_RULES: Final[_Rules] = {
    "name": _NAME_RULE,
    "data_dir": "the path of a folder, absolute or relative to this file",
    "wake_deadline_ms": _DEADLINE_RULE,
    "save_deadline_ms": _DEADLINE_RULE,
}
_STORE_RULES: Final[_Rules] = {
    "engine": '"lmdb"',
    "shards": f"an integer from 1 to {SHARDS_MAX}",
    "durability": '"sync" or "async"',
    "sync_interval_ms": f"an integer from 1 to {SYNC_INTERVAL_MS_MAX} (milliseconds)",
    "wake": '"eager"',
}
_KIND_RULES: Final[_Rules] = {
    "store": "the name of a store",
    "required": "true or false",
    "ttl_s": f"seconds from {TTL_S_MIN} to {TTL_S_MAX:.0f}, or none for ever",
    "fallback": f"a value of at most {FALLBACK_BYTES_MAX} bytes as msgpack, its integers of 64 bits",
}
_NODE_RULES: Final[_Rules] = {
    "name": _NAME_RULE,
    "endpoint": ENDPOINT_RULE,
    "stores": "a list of names of stores",
}
_SECTIONS: Final = {
    "cluster": "[cluster]",
    "stores": "[stores.NAME]",
    "fragments": "[fragments.KIND]",
    "nodes": "[[nodes]]",
}

_NOT_YET: Final = {"lazy"}
"""Values of the design that later versions permit: refused in other words than a typing error."""


class _ClusterTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    data_dir: str
    wake_deadline_ms: int = 1_000
    save_deadline_ms: int = 10_000


class _Mistake(Exception):
    """The key of a mistake and a sentence on it; `load_topology` adds the file."""


class _Place:
    """Where in the file a table stands, to name the keys in it."""

    def __init__(self, key: str, note: str = "") -> None:
        self.key = key
        self.note = note

    def refuse(self, field: str | None, problem: str) -> NoReturn:
        key = self.key if field is None else f"{self.key}.{_quoted_key(field)}"
        raise _Mistake(f"{key}{self.note}: {problem}")


def load_topology(path: str | os.PathLike[str]) -> Topology:
    """Read and check a topology file.

    A relative `data_dir` is resolved against the file's folder; `~` is the user's home. A fallback's dates and times
    without a time zone become strings, as they would on the wire.

    Raises:
        TopologyError: the file cannot be read, or has a mistake; the message names file, key and permitted values.
    """
    file = os.fspath(path)
    try:
        return _read_topology(_parse(_read_text(file)), Path(file))
    except _Mistake as mistake:
        raise TopologyError(f"{file}: {mistake}") from mistake.__cause__


def _read_text(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            raw = opened.read(TOPOLOGY_FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise _Mistake("there is no such file; permitted: the path of a topology file") from error
    except IsADirectoryError as error:
        raise _Mistake("this is a folder; permitted: the path of a topology file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _Mistake(f"cannot be read: {reason}; permitted: the path of a readable topology file") from error
    if len(raw) > TOPOLOGY_FILE_BYTES_MAX:
        raise _Mistake(f"the file is too large; permitted: at most {TOPOLOGY_FILE_BYTES_MAX} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Mistake(f"line {line} is not UTF-8; permitted: TOML 1.0, which is UTF-8") from error


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise _Mistake("not valid TOML: nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and int()'s own for thousands of digits
        raise _Mistake(f"not valid TOML: {error}") from error


def _read_topology(document: dict[str, Any], file: Path) -> Topology:
    for section in document:
        if section not in _SECTIONS:
            hint = _did_you_mean(section, _SECTIONS)
            raise _Mistake(f"{_quoted_key(section)}: unknown key{hint}; permitted: {', '.join(_SECTIONS.values())}")
    for section, header in _SECTIONS.items():
        if section not in document:
            raise _Mistake(f"{section}: missing; permitted: a section {header}")
    cluster = _read_cluster(document["cluster"])
    stores = _read_stores(document["stores"])
    kinds = _read_kinds(document["fragments"], stores)
    nodes = _read_nodes(document["nodes"], stores)
    _require_used(stores, kinds, nodes)
    return Topology(
        name=cluster.name,
        data_dir=os.path.abspath(file.parent / os.path.expanduser(cluster.data_dir)),
        wake_deadline_ms=cluster.wake_deadline_ms,
        save_deadline_ms=cluster.save_deadline_ms,
        stores=stores,
        kinds=kinds,
        nodes=nodes,
    )


def _read_cluster(table: Any) -> _ClusterTable:
    place = _Place("cluster")
    cluster = _read_table(place, table, _ClusterTable, _CLUSTER_RULES, "[cluster]")
    _require_name(place, "name", cluster.name)
    if not cluster.data_dir or "\0" in cluster.data_dir:
        place.refuse("data_dir", f"{_shown(cluster.data_dir)} is no path; permitted: {_CLUSTER_RULES['data_dir']}")
    for field in ("wake_deadline_ms", "save_deadline_ms"):
        value: int = getattr(cluster, field)
        if not 1 <= value <= DEADLINE_MS_MAX:
            place.refuse(field, f"{value} is out of range; permitted: {_DEADLINE_RULE}")
    return cluster


def _read_stores(section: Any) -> dict[str, StoreSpec]:
    stores: dict[str, StoreSpec] = {}
    for place, name, table in _named_tables("stores", section, STORES_MAX):
        spec = _read_table(place, table, StoreSpec, _STORE_RULES, f"[stores.{name}]")
        _require_choice(place, "engine", spec.engine, ("lmdb",))
        _require_choice(place, "durability", spec.durability, ("sync", "async"))
        if not 1 <= spec.sync_interval_ms <= SYNC_INTERVAL_MS_MAX:
            place.refuse(
                "sync_interval_ms",
                f"{spec.sync_interval_ms} is out of range; permitted: {_STORE_RULES['sync_interval_ms']}",
            )
        _require_choice(place, "wake", spec.wake, ("eager",))
        if not 1 <= spec.shards <= SHARDS_MAX:
            place.refuse("shards", f"{spec.shards} is out of range; permitted: {_STORE_RULES['shards']}")
        stores[name] = spec
    total = sum(spec.shards for spec in stores.values())
    if total > SHARDS_TOTAL_MAX:
        raise _Mistake(f"stores: all together have {total} shards; permitted: at most {SHARDS_TOTAL_MAX}")
    return stores


def _read_kinds(section: Any, stores: Mapping[str, StoreSpec]) -> dict[str, KindSpec]:
    kinds: dict[str, KindSpec] = {}
    for place, kind, table in _named_tables("fragments", section, KINDS_MAX):
        spec = _read_table(place, table, KindSpec, _KIND_RULES, f"[fragments.{kind}]")
        _require_store(place, "store", spec.store, stores)
        if spec.ttl_s is not None and not TTL_S_MIN <= spec.ttl_s <= TTL_S_MAX:
            place.refuse("ttl_s", f"{spec.ttl_s} is out of range; permitted: {_KIND_RULES['ttl_s']}")
        kinds[kind] = (
            msgspec.structs.replace(spec, fallback=_through_msgpack(place, spec)) if spec.has_fallback else spec
        )
    return kinds


def _through_msgpack(place: _Place, spec: KindSpec) -> Any:
    try:
        encoded = msgspec.msgpack.encode(spec.fallback)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        place.refuse("fallback", f"cannot be encoded as msgpack: {error}; permitted: {_KIND_RULES['fallback']}")
    if len(encoded) > FALLBACK_BYTES_MAX:
        place.refuse("fallback", f"has {len(encoded)} bytes as msgpack; permitted: {_KIND_RULES['fallback']}")
    return msgspec.msgpack.decode(encoded)


def _read_nodes(section: Any, stores: Mapping[str, StoreSpec]) -> dict[str, NodeSpec]:
    if not isinstance(section, list):
        raise _Mistake(f"nodes: must be a list of tables, not {_toml_type(section)}; permitted: sections [[nodes]]")
    tables = cast("Sequence[Any]", section)
    if not 1 <= len(tables) <= NODES_MAX:
        raise _Mistake(f"nodes: there are {len(tables)} nodes; permitted: 1 to {NODES_MAX} sections [[nodes]]")
    nodes: dict[str, NodeSpec] = {}
    owner_of_endpoint: dict[tuple[str, int], str] = {}
    for index, table in enumerate(tables):
        place = _Place(f"nodes[{index}]", _node_note(table))
        node = _read_table(place, table, NodeSpec, _NODE_RULES, "[[nodes]]")
        _require_name(place, "name", node.name)
        if node.name in nodes:
            first = list(nodes).index(node.name)
            place.refuse("name", f"nodes[{first}] has this name, too; permitted: a name that no other node has")
        owner = owner_of_endpoint.setdefault(_read_endpoint(place, node.endpoint), node.name)
        if owner != node.name:
            place.refuse(
                "endpoint", f'node "{owner}" has {node.endpoint}, too; permitted: an endpoint that no other node has'
            )
        _require_stores(place, node.stores, stores)
        nodes[node.name] = node
    return nodes


def _node_note(table: Any) -> str:
    name = cast("dict[str, Any]", table).get("name") if isinstance(table, dict) else None
    return f" (node {_shown(name)})" if isinstance(name, str) else ""


def _read_endpoint(place: _Place, endpoint: str) -> tuple[str, int]:
    try:
        host, port = parse_endpoint(endpoint)
    except ValueError as error:
        place.refuse("endpoint", f"{error}; permitted: {ENDPOINT_RULE}")
    return ("127.0.0.1" if host == "localhost" else host), port


def _require_stores(place: _Place, listed: tuple[str, ...], stores: Mapping[str, StoreSpec]) -> None:
    if not listed:
        place.refuse("stores", f"is empty, the node would serve nothing; permitted: {_alternatives(stores)}")
    for index, store in enumerate(listed):
        if store in listed[:index]:
            place.refuse("stores", f"names {_shown(store)} twice; permitted: each store once")
        _require_store(place, "stores", store, stores)


def _require_used(
    stores: Mapping[str, StoreSpec], kinds: Mapping[str, KindSpec], nodes: Mapping[str, NodeSpec]
) -> None:
    filled = {spec.store for spec in kinds.values()}
    served = {store for node in nodes.values() for store in node.stores}
    for store in stores:
        if store not in filled:
            raise _Mistake(
                f"stores.{store}: no kind is kept in it, so that nothing could be saved there; "
                f'permitted: a store with at least one [fragments.KIND] that has store = "{store}"'
            )
        if store not in served:
            raise _Mistake(
                f"stores.{store}: no node serves it; permitted: a store that at least one of [[nodes]] lists"
            )


_T = TypeVar("_T", bound=msgspec.Struct)


def _named_tables(section: str, tables: Any, count_max: int) -> Iterable[tuple[_Place, str, Any]]:
    """Check a section of tables with names for keys; yield each with its place and name."""
    header = _SECTIONS[section]
    if not isinstance(tables, dict):
        raise _Mistake(f"{section}: must be a table, not {_toml_type(tables)}; permitted: sections {header}")
    named = cast("dict[str, Any]", tables)
    if not 1 <= len(named) <= count_max:
        raise _Mistake(f"{section}: there are {len(named)}; permitted: 1 to {count_max} sections {header}")
    for name, table in named.items():
        place = _Place(f"{section}.{_quoted_key(name)}")
        if NAME_PATTERN.fullmatch(name) is None:
            place.refuse(None, f"{_shown(name)} cannot be a name; permitted: {_NAME_RULE}")
        yield place, name, table


def _read_table(place: _Place, table: Any, type_: type[_T], rules: _Rules, header: str) -> _T:
    """Convert one table, refusing keys that are unknown or missing and values of another type."""
    if not isinstance(table, dict):
        place.refuse(None, f"must be a table, not {_toml_type(table)}; permitted: a section {header}")
    values = cast("dict[str, Any]", table)
    for key in values:
        if key not in rules:
            place.refuse(key, f"unknown key{_did_you_mean(key, rules)}; permitted: {', '.join(rules)}")
    for field in msgspec.structs.fields(type_):
        if field.required and field.name not in values:
            place.refuse(field.name, f"missing; permitted: {rules[field.name]}")
    for field in msgspec.structs.fields(type_):
        if field.name in values:
            _require_type(place, field, values[field.name], rules[field.name])
    return msgspec.convert(values, type_)


def _require_type(place: _Place, field: msgspec.structs.FieldInfo, value: Any, rule: str) -> None:
    try:
        msgspec.convert(value, field.type)
    except msgspec.ValidationError as error:
        # A list of the right type has an item of a wrong one: msgspec's path says which ("... - at `$[1]`").
        item = re.search(r"at `\$\[(\d+)\]`", str(error))
        if item is not None:
            name, value = f"{field.name}[{item[1]}]", value[int(item[1])]
        else:
            name = field.name
        place.refuse(name, f"must not be {_toml_type(value)}; permitted: {rule}")


def _require_name(place: _Place, field: str, name: str) -> None:
    if NAME_PATTERN.fullmatch(name) is None:
        place.refuse(field, f"{_shown(name)} cannot be a name; permitted: {_NAME_RULE}")


def _require_choice(place: _Place, field: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    permitted = _alternatives(choices)
    if value in _NOT_YET:
        place.refuse(field, f"{_shown(value)} is not supported yet; permitted now: {permitted}")
    place.refuse(field, f"unknown value {_shown(value)}{_did_you_mean(value, choices)}; permitted: {permitted}")


def _require_store(place: _Place, field: str, store: str, stores: Mapping[str, StoreSpec]) -> None:
    if store not in stores:
        hint = _did_you_mean(store, stores)
        place.refuse(field, f"unknown store {_shown(store)}{hint}; permitted: {_alternatives(stores)}")


def _alternatives(values: Iterable[str]) -> str:
    return ", ".join(f'"{value}"' for value in values)


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given.lower(), list(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _quoted_key(key: str) -> str:
    """Return a key as TOML has it: bare or quoted. "stores[1]" is ours and stays."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+(\[\d+\])?", key) else _shown(key)


def _shown(value: str) -> str:
    """Return a string as TOML and JSON have it, on one line and cut short."""
    return msgspec.json.encode(value if len(value) <= 80 else value[:77] + "...").decode()


def _toml_type(value: Any) -> str:
    """Return TOML's word for a value's type, with its article."""
    names = {bool: "a boolean", str: "a string", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return next((name for type_, name in names.items() if isinstance(value, type_)), "a date or time")
