"""The launcher's order to a node that it starts, and its use by the node."""

import os
import shutil
from pathlib import Path

import pytest

from dawnchorus.nodes.start_order import StartOrder, encode_order, order_for, read_order
from dawnchorus.wire.cluster.topology_file import load_topology
from dawnchorus.wire.errors import ConfigurationError, PlacementError
from tests.support.clusters import write_topology

UUID = "ab" * 16


@pytest.fixture
def order(tmp_path: Path) -> StartOrder:
    """The order for a cluster whose data directory exists."""
    (tmp_path / "data").mkdir()
    return order_for(load_topology(write_topology(tmp_path, ports=[7701, 7702, 7703])), UUID)


def read(said: bytes) -> tuple[StartOrder, bytes]:
    """Read an order from a pipe; return it, and what is left in the pipe."""
    reader, writer = os.pipe()
    try:
        os.write(writer, said)
        os.close(writer)
        return read_order(reader), os.read(reader, 100)
    finally:
        os.close(reader)


def test_order_carries_topology_with_its_data_directory(order: StartOrder, tmp_path: Path) -> None:
    read_back, left = read(encode_order(order))
    assert (read_back, left) == (order, b"")
    assert read_back.read_topology() == load_topology(tmp_path / "topology.toml")


def test_only_the_directory_of_the_start_is_accepted(order: StartOrder, tmp_path: Path) -> None:
    order.require_place()
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(PlacementError, match="cannot be had: No such file or directory: it was moved"):
        order.require_place()
    shutil.copytree(tmp_path / "moved", tmp_path / "data")
    with pytest.raises(PlacementError, match=rf"data: the data directory of cluster {UUID}, .* is another one now"):
        order.require_place()
    (tmp_path / "data").rmdir()
    (tmp_path / "moved").rename(tmp_path / "data")
    order.require_place()


@pytest.mark.parametrize("said", [b"", b"{", b"{}\n", b"\xff\n", b'{"topology": 1}\n'])
def test_launcher_dead_before_its_order_is_reported(said: bytes) -> None:
    with pytest.raises(ConfigurationError, match="standard input"):
        read(said)
