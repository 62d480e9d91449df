"""Restores that are interrupted, repeated, mixed up and short of space: real shards, without nodes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from dawnchorus.nodes.shard_table import open_shards
from dawnchorus.wire.cluster.restore_marker import MARKER_FILE, read_marker, require_no_restore
from dawnchorus.wire.errors import DataDirectoryError, StoreCorrupt, StoreFull
from tests.support.lives import Backup, Life

SHARDS = 2


class Interrupted(Exception):
    """The death of the process that restores."""


@pytest.fixture
def origin(tmp_path: Path) -> Life:
    """A cluster that has lived for two starts."""
    life = Life(tmp_path / "origin", SHARDS)
    life.start(3)
    life.start(2)
    return life


def values(life: Life) -> dict[str, dict[bytes, bytes]]:
    """Return the values that a data directory holds, by shard."""
    return life.agents()


def dying(step: int, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Let the restore die before its `step`-th action on the disk; nothing is cleaned up."""
    real: Callable[..., object] = getattr(os, function)
    done = 0

    def call(*arguments: object, **keywords: object) -> object:
        nonlocal done
        done += 1
        if done > step:
            raise Interrupted
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, function, call)
    monkeypatch.setattr(shutil, "rmtree", _leave)
    monkeypatch.setattr("dawnchorus.tools.backup.restore.remove_marker", _die)


def _leave(_path: Path, *, ignore_errors: bool = False) -> None:
    """Clean nothing up."""
    del ignore_errors


def _die(_directory: Path) -> NoReturn:
    raise Interrupted


def interrupted(backup: Backup, target: Life, step: int, function: str) -> None:
    """Begin a restore that dies at a step."""
    with pytest.MonkeyPatch.context() as patched:
        dying(step, patched, function)
        with pytest.raises(Interrupted):
            target.restore(backup)


# The renames of a restore of two shards: its marker, again when all are built, two shards, the placement.
@pytest.mark.parametrize("step", range(6))
def test_dead_restore_is_repeated_with_its_backup(origin: Life, tmp_path: Path, step: int) -> None:
    backup = origin.backup(tmp_path / "backup")
    before = values(origin)
    target = Life(tmp_path / "target", SHARDS)
    interrupted(backup, target, step, "rename" if step % 2 else "replace")
    target.restore(backup)
    assert read_marker(target.path) is None
    assert values(target) == before
    target.start(1)


@pytest.mark.parametrize("function", ["rename", "replace"])
@pytest.mark.parametrize("step", range(4))
def test_two_backups_are_never_mixed(origin: Life, tmp_path: Path, step: int, function: str) -> None:
    first = origin.backup(tmp_path / "first")
    origin.start(4)
    second = origin.backup(tmp_path / "second")
    wanted = values(origin)
    target = Life(tmp_path / "target", SHARDS)
    interrupted(first, target, step, function)
    marker = read_marker(target.path)
    if marker is not None and marker.phase == "placing":
        with pytest.raises(DataDirectoryError, match=r"restore of another backup \(.*first.*\) was interrupted"):
            target.restore(second)
        target.restore(first)
    else:
        target.restore(second)
        assert values(target) == wanted, "what the first had built is gone"


def test_no_node_starts_on_interrupted_restore(origin: Life, tmp_path: Path) -> None:
    backup = origin.backup(tmp_path / "backup")
    target = Life(tmp_path / "target", SHARDS)
    interrupted(backup, target, 1, "rename")
    with pytest.raises(DataDirectoryError, match=r"was interrupted here .*: run `dawnchorus restore .*backup` again"):
        require_no_restore(target.path)
    with pytest.raises(DataDirectoryError, match="was interrupted here"):
        target.start(1)


@pytest.mark.parametrize("phase", ["", "building", "placing"])
def test_a_stale_marker_never_lets_live_shards_go(origin: Life, tmp_path: Path, phase: str) -> None:
    backup = origin.backup(tmp_path / "backup")
    target = Life(tmp_path / "target", SHARDS)
    interrupted(backup, target, 1 if phase == "placing" else 0, "rename" if phase == "placing" else "replace")
    left = target.path / MARKER_FILE
    if phase == "placing":
        marker = left.read_bytes()
    else:
        uuid = backup.manifest.cluster_uuid
        marker = msgspec.json.encode({"cluster_uuid": uuid, "backup": "b"} | ({"phase": phase} if phase else {}))
    left.unlink(missing_ok=True)
    # Life goes on there with the shards of another restore, and then the placement is lost.
    shutil.rmtree(target.path)
    target.restore(backup)
    target.start(5)
    live = {file: file.read_bytes() for file in target.path.glob("*/*/*/data.mdb")}
    for placement in (True, False):
        if not placement:
            (target.path / "placement.json").unlink()
        left.write_bytes(marker)
        with pytest.raises(DataDirectoryError, match=r"holds a (cluster|shard) already|is not as the"):
            target.restore(backup)
        assert {file: file.read_bytes() for file in target.path.glob("*/*/*/data.mdb")} == live


def test_a_full_disk_is_said_and_leaves_nothing(origin: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = origin.backup(tmp_path / "backup")
    target = Life(tmp_path / "target", SHARDS)
    fsync, synced = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += os.readlink(f"/proc/self/fd/{descriptor}").endswith("data.mdb")
        if synced > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data.mdb")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreFull, match="No space left on device; make room, and run the restore again"):
            target.restore(backup)
    assert not list(target.path.glob("*/*/*")), "what was built still takes room"
    assert read_marker(target.path) is None
    target.restore(backup)
    assert values(target) == values(origin)


def test_restored_cluster_has_same_uuid_another_life(origin: Life, tmp_path: Path) -> None:
    backup = origin.backup(tmp_path / "backup")
    lives = [Life(tmp_path / name, SHARDS) for name in ("one", "two")]
    placements = [life.restore(backup) for life in lives]
    assert {placement.cluster_uuid for placement in placements} == {origin.placement().cluster_uuid}
    assert len({placement.life for placement in placements} | {""}) == 3


def test_shards_newer_than_placement_cost_no_generation(origin: Life) -> None:
    old = (origin.path / "placement.json").read_bytes()
    origin.start(1)
    origin.start(1)
    (origin.path / "placement.json").write_bytes(old)
    for _ in range(5):
        with pytest.raises(Exception, match="the placement file is older than the data"):
            origin.start(1)
    assert (origin.path / "placement.json").read_bytes() == old
    # The store itself rejects as well.
    shards = open_shards(origin.topology, origin.placement(), "a")
    try:
        fragments = shards["live", 0].fragments
        assert fragments is not None
        with pytest.raises(StoreCorrupt, match="newer than generation 3"):
            fragments.begin_generation(3)
    finally:
        for shard in shards.values():
            assert shard.fragments is not None
            shard.fragments.close()
