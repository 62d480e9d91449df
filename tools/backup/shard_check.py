"""Verifying shards: what is found in each file, held against what the placement or the manifest says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...fragment_stores.engine import ShardIdentity
from ...fragment_stores.lmdb.check import Finding, Verified
from ...fragment_stores.lmdb.checker import FileVerifier
from ...fragment_stores.lmdb.environment import DATA_FILE
from ...nodes.shard_table import shard_folder
from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import Topology
from ...wire.protocol.versions import generation_of
from .manifest import Manifest

__all__ = ["Expected", "shards_of_backup", "shards_of_data_folder", "verify_shard"]


class Expected(NamedTuple):
    """A shard's file and what it should be. `version` is that of a copy; None where only the file knows."""

    store: str
    shard: int
    path: Path
    cluster_uuid: str
    shards: int
    generation_max: int
    version: int | None = None
    agents: int | None = None


def shards_of_data_folder(topology: Topology, placement: Placement) -> list[Expected]:
    """Return every shard that was ever opened, where it should lie."""
    return [
        Expected(
            store,
            shard,
            shard_folder(topology, owner.node, store, shard) / DATA_FILE,
            placement.cluster_uuid,
            len(owners),
            placement.generation,
        )
        for store, owners in placement.shards.items()
        for shard, owner in enumerate(owners)
        if owner.epoch
    ]


def shards_of_backup(folder: Path, manifest: Manifest) -> list[Expected]:
    """Return every shard of a backup."""
    placement = manifest.read_placement()
    return [
        Expected(
            copy.store,
            copy.shard,
            folder / copy.file,
            manifest.cluster_uuid,
            len(placement.shards[copy.store]),
            placement.generation,
            int(copy.version),
            copy.agents,
        )
        for copy in manifest.shards
    ]


def verify_shard(
    verifier: FileVerifier, expected: Expected, tell: Callable[[int], None] = lambda entries: None
) -> tuple[list[Finding], Verified | None]:
    """Return what is wrong with a shard, and what was seen of it."""
    if not expected.path.is_file():
        return [Finding("structure", f"{expected.path} is missing")], None
    found, seen = verifier.verify(expected.path, tell)
    if seen is not None:
        found += _contradictions(expected, seen)
    return found, seen


def _contradictions(expected: Expected, seen: Verified) -> Sequence[Finding]:
    found: list[Finding] = []
    identity = seen.identity
    if identity is not None:
        wanted = ShardIdentity(
            identity.format, expected.cluster_uuid, expected.store, expected.shard, expected.shards, identity.epoch
        )
        found += [
            Finding("meta", f"it has {field} {getattr(identity, field)!r}, and should have {getattr(wanted, field)!r}")
            for field in ShardIdentity.__struct_fields__
            if getattr(identity, field) != getattr(wanted, field)
        ]
    generation = generation_of(seen.version)
    if generation > expected.generation_max:
        text = f"its version {seen.version} is of generation {generation}, the placement at {expected.generation_max}"
        found.append(Finding("meta", text))
    if expected.version is not None and seen.version != expected.version:
        found.append(Finding("meta", f"it has version {seen.version}, the manifest says {expected.version}"))
    if expected.agents is not None and seen.agents != expected.agents:
        found.append(Finding("images", f"it has {seen.agents:,} agents, the manifest says {expected.agents:,}"))
    return found
