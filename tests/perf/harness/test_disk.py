"""The disk's own limits: a block written and synced, and which file system a directory is on."""

import os
from pathlib import Path

import pytest

from dawnchorus.perf.harness.disk import FileSystem, SyncedFile, file_system, parse_mounts, sync_rate

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /tmp rw shared:2 master:1 - tmpfs tmpfs rw,size=1024k
31 22 254:1 / /srv/a\\040b rw - xfs /dev/vdb rw
32 22 254:2 / /srv/a\\040b rw - ext4 /dev/vdc rw
cut short
"""


def test_last_mount_at_a_place_counts() -> None:
    assert parse_mounts(MOUNTS) == {
        "/": FileSystem("ext4", "/dev/vda"),
        "/tmp": FileSystem("tmpfs", "tmpfs"),
        "/srv/a b": FileSystem("ext4", "/dev/vdc"),
    }


def test_what_is_in_memory_is_no_disk() -> None:
    assert not FileSystem("tmpfs", "tmpfs").is_disk
    assert str(FileSystem("ext4", "/dev/vda")) == "ext4 on /dev/vda"


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="Linux tells it there")
def test_directory_is_on_file_system_mounted_above(tmp_path: Path) -> None:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text(errors="replace"))
    assert file_system(tmp_path) in mounts.values()
    assert file_system(Path("/proc/self")).kind == "proc"


def test_blocks_are_written_in_turn_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "synced"
    with SyncedFile(path) as file:
        size, before = path.stat().st_size, path.stat().st_blocks
        file.write_and_sync()
        assert sync_rate(file, 0.05) > 0
    assert (path.stat().st_size, path.stat().st_blocks) == (size, before), "overwritten in place"
