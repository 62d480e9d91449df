"""Lives of a cluster without processes: starts that write, starts that fail, backups, restores, on real shards."""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import msgspec
import xxhash

from dawnchorus.fragment_stores import engine as roles
from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.nodes.shard_table import (
    OwnedShard,
    any_shard_on_disk,
    begin_generation,
    close_shards,
    open_shards,
    require_older,
)
from dawnchorus.tools.backup.manifest import FORMAT, Manifest, ShardCopy
from dawnchorus.tools.backup.restore import restore_all
from dawnchorus.wire.cluster.control_store import establish_placement, take_generation
from dawnchorus.wire.cluster.file_control_store import FileControlStore
from dawnchorus.wire.cluster.placement import Placement, encode_placement
from dawnchorus.wire.cluster.restore_marker import require_no_restore
from dawnchorus.wire.cluster.topology import KindSpec, NodeSpec, StoreSpec, Topology
from dawnchorus.wire.protocol.image import decode_image
from dawnchorus.wire.protocol.messages import Put, Write
from tests.fragment_stores.conformance import ids_after, read
from tests.support.write_ids import new_write_id

__all__ = ["Backup", "Life"]

Given = tuple[str, int]
"""A shard and a version that it has given."""


class Backup(NamedTuple):
    """A backup's directory and manifest."""

    path: Path
    manifest: Manifest


class Life:
    """One data directory of one cluster: a store, its shards on one node."""

    def __init__(self, path: Path, shards: int) -> None:
        """Make nothing yet."""
        self.path = path
        self.topology = Topology(
            "test",
            data_dir=str(path),
            stores={"live": StoreSpec(shards=shards)},
            kinds={"session": KindSpec("live")},
            nodes={"a": NodeSpec("a", "tcp://127.0.0.1:1", ("live",))},
        )
        self._control = FileControlStore.in_directory(path)

    def made(self) -> Path:
        """Return the data directory, created if necessary."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    def placement(self) -> Placement:
        """Return the present placement."""
        placement = asyncio.run(self._control.read())
        assert placement is not None
        return placement

    @contextlib.contextmanager
    def _opened(self) -> Generator[dict[tuple[str, int], OwnedShard]]:
        """Do what a start does before it takes a generation."""
        require_no_restore(self.path)
        placement = asyncio.run(
            establish_placement(self.topology, self._control, lambda: any_shard_on_disk(self.topology))
        )
        shards = open_shards(self.topology, placement, "a")
        try:
            require_older(shards, placement)
            yield shards
        finally:
            close_shards(shards)

    def fail(self) -> None:
        """Start as far as to the generation, and fail."""
        with self._opened():
            pass

    def start(self, writes: int) -> list[Given]:
        """Start, write to each shard, and stop; return each shard's versions."""
        given: list[Given] = []
        with self._opened() as shards:
            begin_generation(shards, asyncio.run(take_generation(self._control, "a")).generation)
            for (store, number), shard in shards.items():
                assert shard.fragments is not None
                for write in range(writes):
                    put = Put("session", 0, 0, b"%d" % write)
                    results = shard.fragments.commit(
                        [Write(b"agent-%d" % write, new_write_id(), 0, [put])], 1, shard.epoch
                    )
                    given += [(f"{store}/{number}", result) for result in results if isinstance(result, int)]
        return given

    def agents(self) -> dict[str, dict[bytes, bytes]]:
        """Return what each shard has, by agent."""
        with self._opened() as shards:
            return {f"{store}/{number}": _agents(_open(shard)) for (store, number), shard in shards.items()}

    def backup(self, path: Path) -> Backup:
        """Copy every shard, as nodes do, with a manifest."""
        path.mkdir()
        copies: list[ShardCopy] = []
        with self._opened() as shards:
            placement = self.placement()
            for (store, number), shard in shards.items():
                pieces: list[bytes] = []
                fragments = _open(shard)
                assert isinstance(fragments, roles.ShardCopy)
                facts = fragments.write_copy(pieces.append)
                content = b"".join(pieces)
                file = f"{store}-{number:04d}.mdb"
                (path / file).write_bytes(content)
                checksum = xxhash.xxh3_128_hexdigest(content)
                copies.append(ShardCopy(store, number, file, str(facts.version), facts.agents, len(content), checksum))
        encoded = msgspec.Raw(encode_placement(placement))
        manifest = Manifest(FORMAT, "test", placement.cluster_uuid, str(path), "", "", encoded, tuple(copies))
        return Backup(path, manifest)

    def restore(self, backup: Backup, tell: Callable[[ShardCopy, int], None] = lambda _copy, _more: None) -> Placement:
        """Restore a backup here."""
        return restore_all(self.topology, self.made(), backup.manifest, backup.path, tell)


def _open(shard: OwnedShard) -> Shard:
    assert shard.fragments is not None
    return shard.fragments


def _agents(fragments: Shard) -> dict[bytes, bytes]:
    agents = ids_after(fragments, b"", 1_000)
    images = read(fragments, agents)
    return {agent: decode_image(image)["session"].value for agent, image in zip(agents, images, strict=True)}
