"""A placement over any life: grown topologies, starts, restores under other nodes; pure, as a machine."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dawnchorus.wire.cluster.placement import (
    GENERATIONS_SKIPPED,
    Placement,
    decode_placement,
    encode_for_clients,
    encode_placement,
    initial_placement,
    reconcile,
    restored,
    with_new_generation,
)
from dawnchorus.wire.cluster.topology import KindSpec, NodeSpec, StoreSpec, Topology
from dawnchorus.wire.errors import PlacementError

UUID = "ab" * 16
STORES = ("live", "archive", "identity")
NODES = ("a", "b", "c", "d")

stores = st.lists(st.sampled_from(STORES), min_size=1, max_size=3, unique=True)


def topology(shards: dict[str, int], nodes: dict[str, list[str]]) -> Topology:
    """Return stores with so many shards, a kind each, on nodes that list them."""
    return Topology(
        "test",
        stores={store: StoreSpec(shards=count) for store, count in shards.items()},
        kinds={f"kind-{store}": KindSpec(store) for store in shards},
        nodes={
            name: NodeSpec(name, f"tcp://127.0.0.1:{7_000 + number}", tuple(listed))
            for number, (name, listed) in enumerate(nodes.items())
        },
    )


class PlacementMachine(RuleBasedStateMachine):
    """One cluster's placement, and the topology that it is brought up to date with."""

    def __init__(self) -> None:
        super().__init__()
        self._shards: dict[str, int] = {}
        self._nodes: dict[str, list[str]] = {}
        self._lives = 0
        self.placement: Placement | None = None

    @property
    def _topology(self) -> Topology:
        return topology(self._shards, self._nodes)

    def _take(self, placement: Placement) -> None:
        """Keep a placement as a control store does; nothing in it may have gone back."""
        before = self.placement
        if before is not None:
            assert placement.cluster_uuid == before.cluster_uuid
            assert placement.generation >= before.generation
            assert placement.kinds.items() >= before.kinds.items()
            for store, owners in before.shards.items():
                for old, new in zip(owners, placement.shards[store], strict=True):
                    assert new.epoch >= old.epoch
                    assert new.node == old.node or new.epoch > old.epoch, "two owners under one epoch"
            placement = msgspec.structs.replace(placement, revision=max(placement.revision, before.revision + 1))
        self.placement = placement

    @initialize(listed=stores, count=st.integers(1, 5))
    def begin(self, listed: list[str], count: int) -> None:
        self._shards = dict.fromkeys(listed, count)
        self._nodes = {"a": list(listed)}
        self._take(initial_placement(self._topology, UUID))

    @rule(store=st.sampled_from(STORES), count=st.integers(1, 5), node=st.sampled_from(NODES))
    def grow(self, store: str, count: int, node: str) -> None:
        assert self.placement is not None
        self._shards.setdefault(store, count)
        listed = self._nodes.setdefault(node, [])
        if store not in listed:
            listed.append(store)
        grown = reconcile(self._topology, self.placement)
        assert reconcile(self._topology, grown) is grown
        self._take(grown)

    @rule(store=st.sampled_from(STORES))
    def shrink(self, store: str) -> None:
        assert self.placement is not None
        if store in self.placement.shards:
            less = {name: count for name, count in self._shards.items() if name != store}
            with pytest.raises(PlacementError, match=f"store '{store}' was removed"):
                reconcile(topology(less, self._nodes), self.placement)

    @rule(node=st.sampled_from(NODES))
    def start(self, node: str) -> None:
        assert self.placement is not None
        started = with_new_generation(self.placement, node)
        assert started.generation == self.placement.generation + 1
        assert all(epoch for _store, _shard, epoch in started.shards_of(node))
        self._take(started)

    @rule(nodes=st.lists(st.sampled_from(NODES), min_size=1, unique=True), draw=st.integers(0, GENERATIONS_SKIPPED - 1))
    def restore(self, nodes: list[str], draw: int) -> None:
        assert self.placement is not None
        self._lives += 1
        self._nodes = {name: list(self._shards) for name in nodes}
        life = f"{self._lives:032x}"
        back = restored(self._topology, self.placement, self.placement.generation, life=life, draw=draw)
        assert back.generation == self.placement.generation + GENERATIONS_SKIPPED + draw
        assert back.life == life
        self._take(back)

    @invariant()
    def every_shard_has_one_owner_that_may_have_it(self) -> None:
        if self.placement is not None:
            owned = [
                (store, shard)
                for node, listed in self._nodes.items()
                for store, shard, _epoch in self.placement.shards_of(node)
                if store in listed
            ]
            assert sorted(owned) == sorted(
                (store, shard) for store, count in self._shards.items() for shard in range(count)
            )

    @invariant()
    def it_survives_its_encoding(self) -> None:
        if self.placement is not None:
            assert decode_placement(encode_placement(self.placement)) == self.placement
            assert decode_placement(encode_for_clients(self.placement)).shards == self.placement.shards


PlacementMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
TestPlacements = PlacementMachine.TestCase
