"""The clusters of a storm: real topology files, and `default` the repository's own."""

import socket
import tomllib
from pathlib import Path

import pytest

from dawnchorus.perf.harness.topologies import (
    TOPOLOGY_NAMES,
    TopologyName,
    default_text,
    free_ports,
    node_count,
    store_of_kind,
    write_topology,
)
from dawnchorus.perf.harness.workload import GivenAgents, SyntheticAgents, WorkloadError
from dawnchorus.wire.cluster.topology_file import load_topology

REPOSITORY_FILE = Path(__file__).parents[3] / "topology.toml"


def test_default_means_what_the_repositorys_file_means() -> None:
    endpoints = [f"tcp://127.0.0.1:{port}" for port in (7411, 7412, 7413)]
    ours = tomllib.loads(default_text("dev", "var/dev", 1000, 10_000, endpoints))
    assert ours == tomllib.loads(REPOSITORY_FILE.read_text())


@pytest.mark.parametrize("name", TOPOLOGY_NAMES)
def test_written_topologies_are_valid_and_as_said(name: TopologyName, tmp_path: Path) -> None:
    workload = SyntheticAgents(3, 10)
    topology = load_topology(write_topology(name, workload, tmp_path))
    assert len(topology.nodes) == node_count(name)
    assert {kind: spec.store for kind, spec in topology.kinds.items()} == store_of_kind(name, workload.kinds)
    assert len({node.endpoint for node in topology.nodes.values()}) == node_count(name)
    assert Path(topology.data_dir).parent == tmp_path.resolve()


def test_required_is_only_what_every_agent_has(tmp_path: Path) -> None:
    workload = GivenAgents([("a", {"notes": 1, "history": 2}), ("b", {"history": 3})])
    topology = load_topology(write_topology("one-store", workload, tmp_path))
    assert {kind: spec.required for kind, spec in topology.kinds.items()} == {"notes": False, "history": True}


def test_kinds_unknown_to_topology_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="notes"):
        write_topology("default", GivenAgents([("a", {"profile": 1, "notes": 1})]), tmp_path)
    with pytest.raises(WorkloadError, match="profile"):
        write_topology("default", GivenAgents([("a", {"history": 1})]), tmp_path)


def test_free_ports_are_different_and_nobody_elses() -> None:
    ports = free_ports(20)

    assert len(set(ports)) == 20
    for port in ports:
        for _ in range(2):  # also after somebody listened there
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)):
                pass
