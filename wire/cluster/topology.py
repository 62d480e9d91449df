"""The topology of a cluster as it is meant to be: its stores, kinds and nodes, as every side sees them.

A `Topology` is read from topology.toml (`wire.cluster.topology_file`) by those that have the file, and delivered in
Welcome (`encode_topology`, `decode_topology`) to those that have only a node's endpoint. It is the wish; which node
serves which shard is the state, and is kept in the placement (`wire.cluster.placement`).

The structs here are plain values and check little: the file is checked where errors can be explained, when it is
read. They are encoded as maps whose defaults are left out, so that fields can be appended later, each with a default,
without a change of older topologies' digests. A default is therefore part of the format: it never changes.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import psutil
import xxhash

from ..errors import TopologyError

__all__ = [
    "ENDPOINT_RULE",
    "FALLBACK_BYTES_MAX",
    "KINDS_MAX",
    "NODES_MAX",
    "SHARDS_MAX",
    "SHARDS_TOTAL_MAX",
    "STORES_MAX",
    "TOPOLOGY_FILE_BYTES_MAX",
    "TTL_S_MAX",
    "TTL_S_MIN",
    "AdmissionSpec",
    "BreakerSpec",
    "KindSpec",
    "NodeSpec",
    "RetrySpec",
    "StoreSpec",
    "Topology",
    "decode_topology",
    "encode_topology",
    "extend",
    "parse_endpoint",
    "require_local_endpoints",
]

KINDS_MAX: Final = 64
"""Kinds of a cluster: an image is decoded completely, and a state has a slot per kind."""

STORES_MAX: Final = 64
"""Stores of a cluster: each costs every wake one more part to gather."""

NODES_MAX: Final = 1_024
"""Nodes of a cluster: a router keeps one connection to each."""

SHARDS_MAX: Final = 1_024
"""Shards of one store: each is an LMDB environment with files and a map of its own."""

SHARDS_TOTAL_MAX: Final = 16_384
"""Shards of all stores together: with node names of 63 characters the placement then stays near 1 MiB, and so
travels in one Welcome (frames end at 4 MiB)."""

FALLBACK_BYTES_MAX: Final = 16 << 10
"""Bytes of one fallback as msgpack: 64 of them travel in one Welcome."""

TOPOLOGY_FILE_BYTES_MAX: Final = 1 << 20
"""Bytes of topology.toml: what it says travels in one Welcome."""

TTL_S_MIN: Final = 0.001
TTL_S_MAX: Final = 10 * 366 * 86_400.0
"""A millisecond to ten years: anything longer means for ever."""

ENDPOINT_RULE: Final = "tcp://HOST:PORT with a host name or address (no wildcard) and a port from 1 to 65535"


class StoreSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One state service: how its images are kept.

    `durability` "sync": acknowledged after the disk has it; "async": after the commit, and synced every
    `sync_interval_ms` milliseconds. `wake` "eager": every wake fetches it; "lazy": only one that names its kinds.
    `options` are the engine's own.
    """

    engine: str = "lmdb"
    shards: int = 16
    durability: str = "sync"
    wake: str = "eager"
    sync_interval_ms: int = 1_000
    options: dict[str, Any] = {}


class KindSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One kind of fragment: the store that keeps it, how long it lives, and what a wake does without it.

    `ttl_s`: seconds from its save to its expiry, None for ever.

    `fallback` is `msgspec.UNSET` if none is given. It is one object shared by all who ask: copy it before it is
    handed to code that may change it. It has been through msgpack once, so that it is the same value whether read from
    the file or received from a node.
    """

    store: str
    required: bool = False
    ttl_s: float | None = None
    fallback: Any | msgspec.UnsetType = msgspec.UNSET

    @property
    def has_fallback(self) -> bool:
        """Whether a fallback was given (it may be any value, also an empty or false one)."""
        return self.fallback is not msgspec.UNSET


class NodeSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One node: its name (also its directory's), its TCP endpoint, and the stores that it may serve shards of."""

    name: str
    endpoint: str
    stores: tuple[str, ...]


class BreakerSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """When a router stops asking a node for a while (`router.dispatch.circuit_breaker`).

    It opens where of at least `requests_min` requests, and moments, of the last `window_s` seconds a share of
    `failure_share` failed, or in `consecutive_timeouts` moments none was answered, and lets one through again after
    `retry_after_s` seconds.
    """

    failure_share: float = 0.25
    requests_min: int = 10
    window_s: float = 10.0
    consecutive_timeouts: int = 5
    retry_after_s: float = 5.0


class RetrySpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How many requests a router may send again (`router.dispatch.retry_budget`).

    At most a `share` of those sent for the first time, and `per_s` a second on top; each waits up to `jitter_ms`
    milliseconds, drawn by chance, once its node is there again.
    """

    share: float = 0.2
    per_s: float = 3.0
    jitter_ms: int = 20


class AdmissionSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Limits of what a router sends to a node at once, and of what waits for it.

    They are those of `router.dispatch.congestion_window` and `router.dispatch.send_queue`.

    `in_flight_max`: requests that a node has at once. An answer that took more than `slow_share` of its request's
    budget makes the router send less. If the oldest request has waited for more than `queue_share` of its budget,
    new ones are shed.
    """

    in_flight_max: int = 256
    slow_share: float = 0.15
    queue_share: float = 0.1


class Topology(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A cluster as topology.toml describes it; each mapping is in the order of the file.

    `data_dir` is an absolute path on the host that read the file, and empty if the topology came from a node.
    Deadlines are in milliseconds and apply to calls that give none. With `ipc` nodes offer a Unix socket, too, which
    routers on the same host prefer.
    """

    name: str
    data_dir: str = ""
    wake_deadline_ms: int = 1_000
    save_deadline_ms: int = 10_000
    stores: Mapping[str, StoreSpec] = {}
    kinds: Mapping[str, KindSpec] = {}
    nodes: Mapping[str, NodeSpec] = {}
    ipc: bool = True
    breaker: BreakerSpec = BreakerSpec()
    retries: RetrySpec = RetrySpec()
    admission: AdmissionSpec = AdmissionSpec()

    def kinds_of(self, store: str) -> tuple[str, ...]:
        """Return the kinds kept in `store`, in the order of the file."""
        return tuple(kind for kind, spec in self.kinds.items() if spec.store == store)

    def nodes_of(self, store: str) -> tuple[str, ...]:
        """Return the names of the nodes that list `store`, in the order of the file."""
        return tuple(name for name, node in self.nodes.items() if store in node.stores)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits: XXH3-64 of the topology as msgpack, keys sorted, without `data_dir`.

        Hosts may keep the file in different directories, and write its sections in another order, and still mean the
        same cluster. Not for security.
        """
        shared = msgspec.structs.replace(self, data_dir="")
        return f"{xxhash.xxh3_64_intdigest(_canonical_encoder.encode(shared)):016x}"


def extend(topology: Topology, cluster: Topology) -> Topology:
    """Return a client's topology with the stores, kinds and nodes of the cluster's own that it has not.

    Entries of both stay the client's: endpoints as it reaches them, deadlines and `ttl_s` as configured. The same
    object if nothing is added.
    """
    stores = {name: spec for name, spec in cluster.stores.items() if name not in topology.stores}
    kinds = {name: spec for name, spec in cluster.kinds.items() if name not in topology.kinds}
    nodes = {name: spec for name, spec in cluster.nodes.items() if name not in topology.nodes}
    if not stores and not kinds and not nodes:
        return topology
    return msgspec.structs.replace(
        topology,
        stores={**topology.stores, **stores},
        kinds={**topology.kinds, **kinds},
        nodes={**topology.nodes, **nodes},
    )


_encoder: Final = msgspec.msgpack.Encoder()
_canonical_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")
_decoder: Final = msgspec.msgpack.Decoder(Topology)


def encode_topology(topology: Topology) -> bytes:
    """Return the topology as msgpack, for Welcome; without `data_dir`, which means nothing on another host."""
    return _encoder.encode(msgspec.structs.replace(topology, data_dir=""))


def decode_topology(encoded: bytes) -> Topology:
    """Return the topology that a node delivered. Fields of later versions are passed over.

    Raises:
        TopologyError: it cannot be decoded, or names stores that it does not have; the node is at fault.
    """
    try:
        topology = _decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TopologyError(f"the topology that a node handed out cannot be read: {error}") from error
    for kind, spec in topology.kinds.items():
        if spec.store not in topology.stores:
            raise TopologyError(f"the topology that a node handed out has kind {kind!r} in no store: {spec.store!r}")
    for store, store_spec in topology.stores.items():
        if not 1 <= store_spec.shards <= SHARDS_MAX:
            raise TopologyError(f"the topology that a node handed out gives store {store!r} {store_spec.shards} shards")
    return topology


_ENDPOINT: Final = re.compile(r"tcp://(\[[^\]]*\]|[^:/\[\]]*):([0-9]{1,5})", re.ASCII)
_HOST_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII | re.IGNORECASE)


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Return host and port of a `tcp://HOST:PORT`; an IPv6 address is in brackets and is returned without them.

    The host is given back in one spelling (lower case, addresses compressed), so that equal endpoints compare equal.

    Raises:
        ValueError: it is no such endpoint; the message says what is wrong with it, as the end of a sentence.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise ValueError(f"{endpoint!r} is not an endpoint")
    host, port = match[1], int(match[2])
    if not 1 <= port <= 65_535 or match[2].startswith("0"):
        raise ValueError(f"{endpoint!r} has no usable port: {match[2]}")
    if host == "*":
        raise ValueError(f"{endpoint!r} has a wildcard for a host, which no client could connect to")
    try:
        address = _parse_host(host)
    except ValueError:
        raise ValueError(f"{endpoint!r} has no usable host: {host!r}") from None
    if address is None:
        return host.lower(), port
    if address.is_unspecified:
        raise ValueError(f"{endpoint!r} has a wildcard address for a host, which no client could connect to")
    return str(address), port


def _parse_host(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` is, or None for a name; raise ValueError for neither."""
    if host.startswith("["):
        if "%" in host:
            raise ValueError(host)
        return ipaddress.IPv6Address(host[1:-1])
    labels = host.split(".")
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError(host)
    # A name whose last label is a number is taken for an IPv4 address everywhere (WHATWG URL, "ends in a number").
    return ipaddress.IPv4Address(host) if labels[-1].isdigit() else None


def require_local_endpoints(topology: Topology) -> None:
    """Reject endpoints of other hosts: the file control store serves the nodes of one host only.

    For nodes and the launcher, not for clients, which may connect from anywhere. Permitted are `localhost`, loopback
    addresses and the addresses of this host's network interfaces. Names are not looked up: ZeroMQ binds to addresses.

    Raises:
        TopologyError: an endpoint is of another host; the message names the node and the permitted hosts.
    """
    local = _interface_addresses()
    for node in topology.nodes.values():
        try:
            host, _port = parse_endpoint(node.endpoint)
        except ValueError as error:
            raise TopologyError(f"node {node.name!r}: endpoint {error}; permitted: {ENDPOINT_RULE}") from None
        if host == "localhost" or host in local or _is_loopback(host):
            continue
        permitted = ", ".join(["localhost", "127.0.0.1", *sorted(local - {"127.0.0.1"})])
        raise TopologyError(
            f"node {node.name!r}: endpoint {node.endpoint!r} is not an address of this host; the file control store "
            f"serves nodes of one host only; permitted hosts here: {permitted}"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _interface_addresses() -> set[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    found = (address for addresses in psutil.net_if_addrs().values() for address in addresses)
    # A link-local IPv6 address carries its interface ("fe80::1%eth0") and cannot be part of an endpoint.
    return {
        str(ipaddress.ip_address(entry.address))
        for entry in found
        if entry.family in families and "%" not in entry.address
    }
