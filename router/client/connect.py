"""The connection to a cluster, with the caller's options checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from ...wire.cluster.topology import Topology
from ...wire.cluster.topology_file import load_topology
from ..arguments import Seconds, deadline, require_mapping, source_of
from .cluster import Cluster
from .value_codec import ValueRules

__all__ = ["connect"]

CONNECT_DEADLINE_S: Final = 5.0
"""How long `connect` waits for nodes that do not answer, if others do."""


def connect(
    source: str | os.PathLike[str] | Topology,
    *,
    types: Mapping[str, Any] | None = None,
    enc_hook: Callable[[Any], Any] | None = None,
    dec_hook: Callable[[type, Any], Any] | None = None,
    ext_hook: Callable[[int, memoryview], Any] | None = None,
    allow_lossy_values: bool = False,
    connect_deadline_s: Seconds = CONNECT_DEADLINE_S,
) -> Cluster:
    """Return a cluster to be opened with `async with`.

    `source` is the path of a topology file, or "tcp://host:port" of any one node, which delivers the topology.
    `types`: kind -> type that its values are decoded into (a `msgspec.Struct`, or any type that msgspec decodes);
    values of other kinds come as plain objects.

    A save rejects a value that would not come back equal (docs/values.md). `enc_hook`, `dec_hook` and `ext_hook` teach
    types, as msgspec's encoder and decoder call them: `enc_hook(object)` returns the value to save for it, often a
    `msgspec.msgpack.Ext(code, data)`; `dec_hook(type, value)` makes an object of a type that is registered for a kind;
    `ext_hook(code, data)` makes one of an Ext, in any kind. `allow_lossy_values`: values may come back changed (a set
    as a list, a UUID as its text); keys of a mapping that become one are rejected all the same.

    Opening the cluster connects to all nodes and returns when each has answered, or by `connect_deadline_s` with those
    that have; the others join when they come up.

    Raises:
        InvalidRequestError: an argument is invalid, or msgspec cannot decode a type (raised when it is opened).
        TopologyError: the file is wrong, or a kind's `fallback` does not fit its type (raised when it is opened).
        UnknownKindError: a type is given for a kind that the topology does not have (raised when it is opened).
        ClusterUnavailable: no node answered (raised when it is opened).
    """
    seconds = deadline(connect_deadline_s, "connect_deadline_s")
    if types is not None:
        require_mapping("types", types, "kinds to types")
    rules = ValueRules(types, enc_hook, dec_hook, ext_hook, allow_lossy_values)
    where = source_of(source)
    if isinstance(where, Topology) or (isinstance(where, str) and "://" in where):
        return Cluster(where, rules, seconds)
    return Cluster(load_topology(where), rules, seconds)
