"""Verifying shards: what is found in each file, held against what the placement or the manifest says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from ...fragment_stores.engine import ShardIdentity
from ...fragment_stores.registry import file_engine
from ...fragment_stores.shard_files import Finding, ShardFiles, ShardVerifier, Verified
from ...nodes.shard_table import shard_directory
from ...wire.cluster.placement import Placement
from ...wire.cluster.topology import Topology
from ...wire.errors import ConfigurationError
from ...wire.protocol.versions import generation_of
from .manifest import Manifest

__all__ = ["Expected", "Verifiers", "require_files", "shards_of_backup", "shards_of_data_directory", "verify_shard"]


class Expected(NamedTuple):
    """A shard's file and what it should be. `version` is that of a copy; None if only the file knows."""

    store: str
    shard: int
    engine: str
    path: Path
    cluster_uuid: str
    shards: int
    generation_max: int
    version: int | None = None
    agents: int | None = None


class Verifiers(ExitStack):
    """One verifier for each engine, made when it is first needed; they end with the block."""

    def __init__(self) -> None:
        super().__init__()
        self._verifiers: dict[str, ShardVerifier] = {}

    def of(self, engine: str) -> ShardVerifier:
        """Return the verifier of an engine that keeps shards as files."""
        if engine not in self._verifiers:
            self._verifiers[engine] = self.enter_context(require_files(engine).verifier())
        return self._verifiers[engine]


def require_files(engine: str) -> ShardFiles:
    """Return the engine of this name.

    Raises:
        ConfigurationError: it is not known here, or keeps no shards as files.
    """
    files = file_engine(engine)
    if files is None:
        raise ConfigurationError(
            f"engine {engine!r} keeps no shards as files; back it up and check it by its own means"
        )
    return files


def shards_of_data_directory(topology: Topology, placement: Placement) -> list[Expected]:
    """Return every shard that was ever opened and is a file, where it should be."""
    expected: list[Expected] = []
    for store, owners in placement.shards.items():
        engine = topology.stores[store].engine
        files = file_engine(engine)
        if files is None:
            continue
        for shard, owner in enumerate(owners):
            if owner.epoch:
                path = shard_directory(topology, owner.node, store, shard) / files.data_file
                uuid = placement.cluster_uuid
                expected.append(Expected(store, shard, engine, path, uuid, len(owners), placement.generation))
    return expected


def shards_of_backup(directory: Path, manifest: Manifest) -> list[Expected]:
    """Return every shard of a backup."""
    placement = manifest.read_placement()
    return [
        Expected(
            copy.store,
            copy.shard,
            copy.engine,
            directory / copy.file,
            manifest.cluster_uuid,
            len(placement.shards[copy.store]),
            placement.generation,
            int(copy.version),
            copy.agents,
        )
        for copy in manifest.shards
    ]


def verify_shard(
    verifiers: Verifiers, expected: Expected, tell: Callable[[int], None] = lambda entries: None
) -> tuple[list[Finding], Verified | None]:
    """Return what is wrong with a shard, and what was seen of it."""
    if not expected.path.is_file():
        return [Finding("structure", f"{expected.path} is missing")], None
    found, seen = verifiers.of(expected.engine).verify(expected.path, tell)
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
