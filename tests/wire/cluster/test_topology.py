"""Topologies as values: their encoding for clients, their digest, and endpoints."""

import contextlib
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.wire.cluster.topology import (
    KindSpec,
    NodeSpec,
    StoreSpec,
    Topology,
    decode_topology,
    encode_topology,
    parse_endpoint,
    require_local_endpoints,
)
from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.errors import TopologyError

ROOT = Path(__file__).parents[3]

names = st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Draw any topology that the format can express."""
    stores = draw(st.dictionaries(names, st.builds(StoreSpec, shards=st.integers(1, 1_024)), min_size=1, max_size=4))
    kind = st.builds(KindSpec, store=st.sampled_from(list(stores)), required=st.booleans())
    with_fallback = st.builds(KindSpec, store=st.sampled_from(list(stores)), fallback=plain_values)
    listed = st.lists(st.sampled_from(list(stores)), unique=True).map(tuple)
    node_names = draw(st.lists(names, unique=True, max_size=4))
    return Topology(
        name=draw(names),
        data_dir="/" + draw(names),
        wake_deadline_ms=draw(st.integers(1, 86_400_000)),
        save_deadline_ms=draw(st.integers(1, 86_400_000)),
        stores=stores,
        kinds=draw(st.dictionaries(names, kind | with_fallback, max_size=6)),
        nodes={name: NodeSpec(name, f"tcp://127.0.0.1:{i + 1}", draw(listed)) for i, name in enumerate(node_names)},
    )


@given(topologies())
def test_topology_survives_encoding_without_data_dir(topology: Topology) -> None:
    decoded = decode_topology(encode_topology(topology))
    assert decoded == msgspec.structs.replace(topology, data_dir="")
    assert list(decoded.kinds) == list(topology.kinds)
    assert list(decoded.nodes) == list(topology.nodes)
    assert decoded.digest == topology.digest


@given(topologies(), st.integers(0, 1 << 63))
def test_fields_of_later_versions_are_passed_over(topology: Topology, value: int) -> None:
    raw: dict[str, Any] = msgspec.msgpack.decode(encode_topology(topology))
    raw["later"] = value
    for section in ("stores", "nodes", "kinds"):
        for spec in raw.get(section, {}).values():
            spec["later"] = [value]
    assert decode_topology(msgspec.msgpack.encode(raw)) == msgspec.structs.replace(topology, data_dir="")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_error_or_topology(arbitrary: bytes) -> None:
    with contextlib.suppress(TopologyError):
        assert decode_topology(arbitrary).name is not None


@pytest.mark.parametrize(
    "raw",
    [
        {"name": "dev", "kinds": {"a": {"store": "nowhere"}}},
        {"name": "dev", "stores": {"live": {"shards": 0}}},
        {"name": "dev", "stores": {"live": {"shards": "many"}}},
        {"kinds": {}},
        b"\xc1",
        {"name": "dev", "nodes": {"a": {"name": "a"}}},
    ],
)
def test_a_contradictory_topology_from_a_node_is_rejected(raw: Any) -> None:
    encoded = raw if isinstance(raw, bytes) else msgspec.msgpack.encode(raw)
    with pytest.raises(TopologyError, match="a node handed out"):
        decode_topology(encoded)


def test_nesting_that_would_overflow_the_stack_is_rejected() -> None:
    encoded = b"\x82\xa4name\xa1a\xa5kinds" + b"\x81\xa1a" + b"\x82\xa5store\xa1s\xa8fallback" + b"\x91" * 100_000
    with pytest.raises(TopologyError):
        decode_topology(encoded)


def test_digest_does_not_depend_on_writing() -> None:
    topology = load_topology(ROOT / "topology.toml")
    swapped = msgspec.structs.replace(
        topology,
        data_dir="/elsewhere",
        stores={store: topology.stores[store] for store in reversed(list(topology.stores))},
        nodes={name: topology.nodes[name] for name in reversed(list(topology.nodes))},
    )
    assert swapped.digest == topology.digest
    assert len(topology.digest) == 16
    changes: list[dict[str, Any]] = [
        {"name": "other"},
        {"wake_deadline_ms": 7},
        {"kinds": {}},
        {"stores": {"live": StoreSpec(shards=5)}},
    ]
    for change in changes:
        assert msgspec.structs.replace(topology, **change).digest != topology.digest


def test_the_digest_never_changes_for_the_same_topology() -> None:
    # Nodes and clients of different versions compare it: a new field must leave it unchanged if it has its default.
    assert load_topology(ROOT / "topology.toml").digest == "927cb80d9994d045"


@pytest.mark.parametrize(
    ("endpoint", "parsed"),
    [
        ("tcp://127.0.0.1:7411", ("127.0.0.1", 7_411)),
        ("tcp://localhost:1", ("localhost", 1)),
        ("tcp://Host-1.example.ORG:65535", ("host-1.example.org", 65_535)),
        ("tcp://compose_service:80", ("compose_service", 80)),
        ("tcp://[::1]:80", ("::1", 80)),
        ("tcp://[0:0:0:0:0:0:0:1]:80", ("::1", 80)),
    ],
)
def test_endpoints_are_parsed(endpoint: str, parsed: tuple[str, int]) -> None:
    assert parse_endpoint(endpoint) == parsed


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "tcp://", "tcp://a", "tcp://a:", "tcp://:1", "tcp://a:0", "tcp://a:65536", "tcp://a:080", "tcp://a:+1"),
        *("tcp://a:1 ", "tcp://a:1\n", "tcp://a:1/", "tcp://a:\N{ARABIC-INDIC DIGIT ONE}", "udp://a:1", "TCP://a:1"),
        *("tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://::1:1", "tcp://[::1:1", "tcp://[1.2.3.4]:1"),
        *("tcp://1.2.3:1", "tcp://1.2.3.256:1", "tcp://7:1", "tcp://a..b:1", "tcp://-a:1", "tcp://eth0;1.2.3.4:1"),
        *("tcp://[fe80::1%eth0]:1", "tcp://" + "a." * 200 + "a:1", "tcp://a:*", "tcp://a:!"),
    ],
)
def test_malformed_endpoint_is_rejected(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"is not an endpoint|no usable|wildcard"):
        parse_endpoint(endpoint)


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    for endpoint in (text, f"tcp://{text}:1", f"tcp://[{text}]:1", f"tcp://a:{text}"):
        try:
            host, port = parse_endpoint(endpoint)
        except ValueError:
            continue
        shown = f"[{host}]" if ":" in host else host
        assert parse_endpoint(f"tcp://{shown}:{port}") == (host, port)


def one_node(endpoint: str) -> Topology:
    return Topology(name="dev", nodes={"live-1": NodeSpec("live-1", endpoint, ("live",))})


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_loopback_is_local(host: str) -> None:
    require_local_endpoints(one_node(f"tcp://{host}:7411"))


def test_addresses_of_this_hosts_interfaces_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        SimpleNamespace(family=socket.AF_INET, address="192.0.2.7"),
        SimpleNamespace(family=socket.AF_INET6, address="2001:db8::7"),
        SimpleNamespace(family=socket.AF_INET6, address="fe80::1%e0"),
        SimpleNamespace(family=psutil.AF_LINK, address="02:00:00:00:00:07"),
    ]

    def net_if_addrs() -> dict[str, list[SimpleNamespace]]:
        return {"e0": entries}

    monkeypatch.setattr(psutil, "net_if_addrs", net_if_addrs)
    require_local_endpoints(one_node("tcp://192.0.2.7:7411"))
    require_local_endpoints(one_node("tcp://[2001:DB8::7]:7411"))


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]", "node-1.example.org"])
def test_other_hosts_are_rejected_with_reason(host: str) -> None:
    with pytest.raises(TopologyError) as caught:
        require_local_endpoints(one_node(f"tcp://{host}:7411"))
    message = str(caught.value)
    assert f"node 'live-1': endpoint 'tcp://{host}:7411' is not an address of this host" in message
    assert "the file control store serves nodes of one host only" in message
    assert "permitted hosts here: localhost, 127.0.0.1" in message


def test_malformed_endpoint_fails_locality_check() -> None:
    with pytest.raises(TopologyError, match="permitted: tcp://HOST:PORT"):
        require_local_endpoints(one_node("tcp://*:7411"))
