"""Files that only their owner can read, whatever the umask: data directories, backups and restored data."""

import asyncio
import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest

from dawnchorus import connect
from dawnchorus.wire.private_files import make_private
from tests.support.clusters import running, write_topology
from tests.tools.command_line import run

NODES = {"all-1": ["identity", "live", "archive"]}


@pytest.fixture
def umask() -> Generator[None]:
    """A umask that removes no permission."""
    before = os.umask(0)
    yield
    os.umask(before)


def readable_by_others(directory: Path) -> list[str]:
    """Return the paths at and below a directory to which other users have any access."""
    return sorted(
        f"{path.relative_to(directory)} {stat.filemode(path.lstat().st_mode)}"
        for path in (directory, *directory.rglob("*"))
        if stat.S_IMODE(path.lstat().st_mode) & 0o077
    )


async def test_data_backups_and_restored_files_are_private(ipc_directory: Path, tmp_path: Path, umask: None) -> None:
    path = write_topology(tmp_path, shards=2, nodes=NODES)
    data, backup = tmp_path / "data", tmp_path / "backups" / "first"
    async with running(path), connect(path) as cluster:
        await cluster.save("a", {"profile": 1, "session": "secret"})
        assert (await asyncio.to_thread(run, "backup", str(backup), "-t", str(path))).returncode == 0
        assert len(list(data.rglob("*.mdb"))) == 2 * 2 * 3, "data and lock files were looked at"
        assert readable_by_others(data) == []
        assert readable_by_others(backup.parent) == []
        assert stat.S_IMODE((ipc_directory / "dawnchorus").stat().st_mode) == 0o700, "nobody else comes to the sockets"
    data.rename(tmp_path / "gone")
    assert run("restore", str(backup), "-t", str(path)).returncode == 0
    assert readable_by_others(data) == []


async def test_node_makes_files_of_earlier_versions_private(ipc_directory: Path, tmp_path: Path, umask: None) -> None:
    path = write_topology(tmp_path, shards=2, nodes=NODES)
    async with running(path):
        pass
    node = tmp_path / "data" / "all-1"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o755)
    (node / "live" / "notes").symlink_to(elsewhere)
    for found in (node, *node.rglob("*")):
        if not found.is_symlink():
            found.chmod(0o777 if found.is_dir() else 0o666)
    elsewhere.chmod(0o755)
    async with running(path) as nodes:
        assert readable_by_others(node) == ["live/notes lrwxrwxrwx"]
        said = [event.detail for event in nodes.events if event.state == "log"]
        assert any("others could read" in detail for detail in said)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755, "what a link leads to is not ours"


def test_taking_back_counts_and_needs_nothing_to_do(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(0o700)
    (directory / "file").touch(0o600)
    assert make_private(directory) == 0
    (directory / "file").chmod(0o640)
    directory.chmod(0o701)
    assert make_private(directory) == 2
    assert stat.S_IMODE((directory / "file").stat().st_mode) == 0o600
    assert make_private(directory / "gone") == 0
