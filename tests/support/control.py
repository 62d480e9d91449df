"""The smallest topology and its first placement, for tests of control stores."""

from typing import Any

import msgspec

from dawnchorus.wire.cluster.placement import initial_placement
from dawnchorus.wire.cluster.topology import KindSpec, NodeSpec, StoreSpec, Topology

__all__ = ["FIRST", "make_topology", "no_shards"]


def make_topology(**changes: Any) -> Topology:
    topology = Topology(
        name="dev",
        data_dir="/srv/dev",
        stores={"live": StoreSpec(shards=2)},
        kinds={"session": KindSpec("live")},
        nodes={"a": NodeSpec("a", "tcp://127.0.0.1:1", ("live",))},
    )
    return msgspec.structs.replace(topology, **changes)


FIRST = initial_placement(make_topology(), "0123456789abcdef" * 2)


def no_shards() -> None:
    """Say that no shard on disk was ever written."""
