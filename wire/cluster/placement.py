"""The placement, from shard to node: computed once from a topology, then only extended.

A `Placement` is the cluster's state; a topology is its wish. It is born from a topology by `initial_placement`,
with a random uuid that every shard's own records name too; from then on it is brought up to date by `reconcile`, which
adds what is new in the topology and rejects what contradicts it: data on disk was hashed and grouped by the old answer,
and would not be found by the new one. Everything here is pure; `wire.cluster.control_store` keeps a placement and
changes it by compare-and-swap.

Three numbers grow in it. `revision`, with every change: what compare-and-swap compares; the control store counts it.
`generation`, with every start of a node: the upper 24 bits of versions (`wire.protocol.versions`). A shard's `epoch`,
with every change of its owner: requests carry it, so that a node which lost a shard can tell.

Encoded, it is a checksummed JSON document (`wire.checksummed_json`). Of a newer version's placement, fields that this
one does not know are kept and written back as they are: nodes of both versions run beside each other while a cluster
is upgraded. A newer version may add such a field only if older ones are right to ignore it; otherwise it counts
`format` up, and older ones reject the placement. A longer entry of a shard is always rejected: it says who may write
the shard, which no version may ignore.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ..checksummed_json import CorruptDocument, decode_document, encode_document
from ..errors import PlacementError
from ..protocol.versions import GENERATION_MAX
from .topology import SHARDS_MAX, Topology

__all__ = [
    "GENERATIONS_SKIPPED",
    "PLACEMENT_FORMAT",
    "Placement",
    "ShardPlacement",
    "decode_placement",
    "encode_for_clients",
    "encode_placement",
    "initial_placement",
    "reconcile",
    "restored",
    "with_new_generation",
]

GENERATIONS_SKIPPED: Final = 4_096
"""Generations passed over by a restore: starts of nodes that may have been between backup and loss. Up to as many more
are drawn by chance, so that two restores of one backup rarely share any."""

PLACEMENT_FORMAT: Final = 1
"""The format that this program writes, and the only one that it reads."""


class ShardPlacement(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One shard's owner and epoch; 0 until its owner has opened it for the first time.

    `migration` is None: moves of shards are not known yet.
    """

    node: str
    epoch: int
    migration: Any = None

    @property
    def serving_epoch(self) -> int:
        """The epoch under which its owner serves it, also for who has this placement from before the first opening."""
        return max(self.epoch, 1)


class Placement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who serves what in a cluster; `shards[store][i]` is shard i of the store.

    `cluster_uuid` is 32 hexadecimal digits, `cluster` the cluster's name. `kinds` (kind -> store) and the numbers of
    shards are kept here because they must not change silently. `life` is drawn anew by each restore, 32 hexadecimal
    digits: two restores of one backup are one cluster, and lead two lives; "" is the first. `unknown` holds the fields
    of a newer version.
    """

    format: int = PLACEMENT_FORMAT
    cluster_uuid: str
    cluster: str
    revision: int = 0
    generation: int = 0
    kinds: Mapping[str, str]
    shards: Mapping[str, tuple[ShardPlacement, ...]]
    life: str = ""
    unknown: Mapping[str, Any] = {}

    def shards_of(self, node: str) -> list[tuple[str, int, int]]:
        """Return (store, shard, epoch) of each shard that `node` owns, in the order of stores and shards."""
        return [
            (store, shard, placed.epoch)
            for store, shards in self.shards.items()
            for shard, placed in enumerate(shards)
            if placed.node == node
        ]


def initial_placement(topology: Topology, cluster_uuid: str) -> Placement:
    """Return the first placement of a new cluster.

    Shard i of a store goes to the (i modulo n)-th of the n nodes that list the store, in the order of the file.
    `cluster_uuid` is 32 hexadecimal digits. Revision and generation are 0, and so are epochs: a shard that was never
    opened.

    Raises:
        PlacementError: no node lists some store.
    """
    return Placement(
        cluster_uuid=cluster_uuid,
        cluster=topology.name,
        kinds={kind: spec.store for kind, spec in topology.kinds.items()},
        shards={store: _spread(topology, store) for store in topology.stores},
    )


def _spread(topology: Topology, store: str) -> tuple[ShardPlacement, ...]:
    nodes = topology.nodes_of(store)
    if not nodes:
        raise PlacementError(f"no node of the topology lists store {store!r}; add it to a node's stores")
    return tuple(ShardPlacement(nodes[shard % len(nodes)], 0) for shard in range(topology.stores[store].shards))


def reconcile(topology: Topology, placement: Placement) -> Placement:
    """Return the placement with the topology's new stores and kinds added; the same object if there are none.

    New nodes change nothing: they own no shard until one is moved to them.

    Raises:
        PlacementError: the topology contradicts the placement; the message says how and what to change.
    """
    _require_same_cluster(topology, placement)
    _require_same_stores(topology, placement)
    _require_same_kinds(topology, placement)
    _require_owners(topology, placement)
    new_kinds = {kind: spec.store for kind, spec in topology.kinds.items() if kind not in placement.kinds}
    new_shards = {store: _spread(topology, store) for store in topology.stores if store not in placement.shards}
    if not new_kinds and not new_shards:
        return placement
    return msgspec.structs.replace(
        placement, kinds={**placement.kinds, **new_kinds}, shards={**placement.shards, **new_shards}
    )


def _require_same_cluster(topology: Topology, placement: Placement) -> None:
    if topology.name != placement.cluster:
        raise PlacementError(
            f"the placement is of cluster {placement.cluster!r}, the topology of cluster {topology.name!r}; "
            f'set cluster.name = "{placement.cluster}", or give this cluster a cluster.data_dir of its own'
        )


def _require_same_stores(topology: Topology, placement: Placement) -> None:
    for store, shards in placement.shards.items():
        spec = topology.stores.get(store)
        if spec is None:
            raise PlacementError(
                f"store {store!r} was removed from the topology, but its shards are placed and may hold data; "
                f"put [stores.{store}] back with shards = {len(shards)}"
            )
        if spec.shards != len(shards):
            raise PlacementError(
                f"store {store!r} has {len(shards)} shards, the topology says {spec.shards}; the number is "
                f"fixed once a cluster was started, as agents are found by it; set "
                f"stores.{store}.shards = {len(shards)}"
            )


def _require_same_kinds(topology: Topology, placement: Placement) -> None:
    for kind, store in placement.kinds.items():
        spec = topology.kinds.get(kind)
        if spec is None:
            raise PlacementError(
                f"kind {kind!r} was removed from the topology, but store {store!r} may hold fragments of it; "
                f'put [fragments.{kind}] back with store = "{store}"'
            )
        if spec.store != store:
            raise PlacementError(
                f"kind {kind!r} is kept in store {store!r}, the topology moves it to {spec.store!r}, where its "
                f'fragments would not be found; set fragments.{kind}.store = "{store}"'
            )


def _require_owners(topology: Topology, placement: Placement) -> None:
    for store, shards in placement.shards.items():
        for owner in dict.fromkeys(placed.node for placed in shards):
            count = sum(placed.node == owner for placed in shards)
            node = topology.nodes.get(owner)
            if node is None:
                raise PlacementError(
                    f"node {owner!r} was removed from the topology, but owns {count} shards of store {store!r}; "
                    f"put its [[nodes]] section back"
                )
            if store not in node.stores:
                raise PlacementError(
                    f"node {owner!r} no longer lists store {store!r}, but owns {count} of its shards; "
                    f'add "{store}" to the node\'s stores'
                )


def with_new_generation(placement: Placement, node: str) -> Placement:
    """Return the placement with the next generation, for one start of `node`.

    The node has opened its shards by then: those of epoch 0 begin their life with epoch 1, and from then on a shard
    that is not there when its node starts is known to be lost.

    Raises:
        PlacementError: all 2**24 - 1 generations are used up.
    """
    if placement.generation >= GENERATION_MAX:
        raise PlacementError(
            f"all {GENERATION_MAX} generations of cluster {placement.cluster!r} are used up (one for each start of a "
            f"node); export its agents and load them into a new cluster"
        )
    shards = {
        store: tuple(
            msgspec.structs.replace(shard, epoch=1) if shard.node == node and not shard.epoch else shard
            for shard in placed
        )
        for store, placed in placement.shards.items()
    }
    return msgspec.structs.replace(placement, generation=placement.generation + 1, shards=shards)


def restored(topology: Topology, placement: Placement, generation: int, *, life: str, draw: int = 0) -> Placement:
    """Return the placement of a cluster that is restored from a backup with `placement`, and begins the life `life`.

    `generation` is the newest that any version of the backup has. More were used after the backup was made, their
    number is unknown: GENERATIONS_SKIPPED are passed over, and so are revisions; and `draw` more, a number below that
    which is drawn for each restore. Shards whose owner the topology no longer has, or not for their store, are spread
    as in a new cluster, with the next epoch.

    Raises:
        PlacementError: the topology contradicts the placement, or generations are used up.
    """
    newest = max(placement.generation, generation) + GENERATIONS_SKIPPED + draw
    if newest >= GENERATION_MAX:
        raise PlacementError(f"generation {newest} is beyond the last one, {GENERATION_MAX}; load an export instead")
    shards: dict[str, tuple[ShardPlacement, ...]] = {}
    for store, placed in placement.shards.items():
        fitting = topology.nodes_of(store)
        shards[store] = tuple(
            ShardPlacement(shard.node, shard.serving_epoch)
            if shard.node in fitting or not fitting
            else ShardPlacement(fitting[index % len(fitting)], shard.serving_epoch + 1)
            for index, shard in enumerate(placed)
        )
    moved = msgspec.structs.replace(
        placement,
        generation=newest,
        revision=placement.revision + GENERATIONS_SKIPPED + draw,
        shards=shards,
        life=life,
    )
    return reconcile(topology, moved)


_DOCUMENT: Final = "placement"
_KNOWN: Final = frozenset(Placement.__struct_fields__) - {"unknown"}
_encoder: Final = msgspec.json.Encoder()


def encode_placement(placement: Placement) -> bytes:
    """Return the placement as indented JSON with its checksum.

    A life that is the first is left out: a program that does not know the field then reads the placement as well.
    """
    fields = msgspec.structs.asdict(placement)
    unknown = fields.pop("unknown")
    if not placement.life:
        del fields["life"]
    return encode_document(_DOCUMENT, _encoder.encode({**fields, **unknown}))


def encode_for_clients(placement: Placement) -> bytes:
    """Return the placement for Welcome, which says whose life it is by itself: clients of before can read it."""
    return encode_placement(msgspec.structs.replace(placement, life=""))


def decode_placement(encoded: bytes) -> Placement:
    """Return the placement that `encode_placement` wrote, whatever the white space in it.

    Raises:
        PlacementError: it is corrupt, was edited, or holds what this version must not ignore; the message says which,
            and leaves naming the file to the caller.
    """
    try:
        fields = decode_document(_DOCUMENT, encoded).fields
    except CorruptDocument as error:
        raise _corrupt(error) from error
    if fields.get("format") != PLACEMENT_FORMAT:
        raise PlacementError(
            f"the placement has format {fields.get('format')!r}, and this version of dawnchorus reads format "
            f"{PLACEMENT_FORMAT} only; use the version that wrote it"
        )
    known = {name: value for name, value in fields.items() if name in _KNOWN}
    unknown = {name: value for name, value in fields.items() if name not in _KNOWN}
    try:
        placement = msgspec.convert({**known, "unknown": unknown}, Placement)
    except msgspec.ValidationError as error:
        raise _corrupt(error) from error
    _require_valid(placement)
    if any(map(_is_unknown, fields["shards"].values(), placement.shards.values())):
        raise PlacementError(
            "the placement has shards in a state that this version of dawnchorus does not know; use the version that "
            "wrote it"
        )
    return placement


def _corrupt(detail: object) -> PlacementError:
    return PlacementError(f"the placement is corrupt: {detail}; restore it from a backup; the shards were not touched")


_UUID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


def _require_valid(placement: Placement) -> None:
    """Raise PlacementError for values that no placement of ours has."""
    problem = None
    if _UUID.fullmatch(placement.cluster_uuid) is None:
        problem = f"cluster_uuid {placement.cluster_uuid!r} is not 32 hexadecimal digits"
    elif placement.life and _UUID.fullmatch(placement.life) is None:
        problem = f"life {placement.life!r} is not 32 hexadecimal digits"
    elif placement.revision < 0:
        problem = f"revision {placement.revision} is negative"
    elif not 0 <= placement.generation <= GENERATION_MAX:
        problem = f"generation {placement.generation} is outside 0 to {GENERATION_MAX}"
    for kind, store in placement.kinds.items():
        if store not in placement.shards:
            problem = f"kind {kind!r} is in store {store!r}, which has no shards"
    for store, shards in placement.shards.items():
        if not 1 <= len(shards) <= SHARDS_MAX:
            problem = f"store {store!r} has {len(shards)} shards"
        elif any(placed.epoch < 0 or not placed.node for placed in shards):
            problem = f"store {store!r} has a shard without an owner or an epoch"
    if problem is not None:
        raise _corrupt(problem)


def _is_unknown(entries: Sequence[Sequence[Any]], shards: Sequence[ShardPlacement]) -> bool:
    """Return whether an entry of these shards, as read, says more than this version knows: moves of shards, say."""
    known = len(ShardPlacement.__struct_fields__)
    return any(len(entry) > known for entry in entries) or any(shard.migration is not None for shard in shards)


def require_placed(topology: Topology, placement: Placement) -> None:
    """Reject a topology by which fragments would be looked for in wrong places. One that knows less is fine."""
    for kind, spec in topology.kinds.items():
        store = placement.kinds.get(kind)
        if store is None:
            raise PlacementError(
                f"cluster {placement.cluster!r} does not know kind {kind!r} of this topology; restart its nodes with it"
            )
        if store != spec.store:
            raise PlacementError(
                f"kind {kind!r} is kept in store {store!r} of cluster {placement.cluster!r}, this topology says "
                f"{spec.store!r}; use the topology that the cluster was started with"
            )
