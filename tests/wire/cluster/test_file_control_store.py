"""The file control store: one winner per revision, nothing torn, each failure named, and a loop that never waits."""

import asyncio
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from dawnchorus.wire.cluster.control_store import establish_placement, take_generation
from dawnchorus.wire.cluster.file_control_store import FileControlStore
from dawnchorus.wire.cluster.placement import encode_placement
from dawnchorus.wire.errors import ConfigurationError, PlacementError
from tests.support.control import FIRST, make_topology, no_shards


async def test_reading_makes_no_placement(control: FileControlStore) -> None:
    assert await control.read() is None
    assert not control.path.parent.exists()


async def test_swap_is_read_with_next_revision(control: FileControlStore) -> None:
    assert control.path.name == "placement.json"
    assert await control.compare_and_swap(0, FIRST)
    assert await control.read() == msgspec.structs.replace(FIRST, revision=1)
    assert await control.compare_and_swap(1, msgspec.structs.replace(FIRST, generation=5, revision=77))
    assert await control.read() == msgspec.structs.replace(FIRST, revision=2, generation=5)


@pytest.mark.parametrize("expected", [0, 2, -1])
async def test_a_swap_of_another_revision_changes_nothing(control: FileControlStore, expected: int) -> None:
    assert await control.compare_and_swap(0, FIRST)
    before = control.path.read_bytes()
    assert not await control.compare_and_swap(expected, msgspec.structs.replace(FIRST, generation=9))
    assert control.path.read_bytes() == before


async def test_swap_of_missing_placement_makes_nothing(control: FileControlStore) -> None:
    assert not await control.compare_and_swap(1, FIRST)
    assert await control.read() is None


async def test_swap_is_synced_around_the_rename(control: FileControlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        done.append(f"rename {source.name} {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    root = control.path.parents[2].name
    assert await control.compare_and_swap(0, FIRST)
    # The two new directories' names first, each in its parent; then the file and its name.
    made = [f"sync {root}", "sync var"]
    assert done == [*made, "sync placement.tmp", "rename placement.tmp placement.json", "sync dev"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 4_096, b'{"checksum": "0", "placement": {}}'])
async def test_corrupt_file_is_named_and_left_alone(control: FileControlStore, damage: bytes) -> None:
    await control.compare_and_swap(0, FIRST)
    control.path.write_bytes(damage)
    attempts = (
        control.read(),
        control.compare_and_swap(0, FIRST),
        control.compare_and_swap(1, FIRST),
        take_generation(control, "identity-1"),
        establish_placement(make_topology(), control, no_shards),
        anext(control.watch()),
    )
    for attempt in attempts:
        with pytest.raises(PlacementError) as caught:
            await attempt
        assert str(caught.value).startswith(f"{control.path}: the placement is corrupt: ")
        assert "restore it from a backup; the shards were not touched" in str(caught.value)
    assert control.path.read_bytes() == damage


async def test_file_as_data_directory_is_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    control = FileControlStore.in_directory(tmp_path / "taken" / "dev")
    with pytest.raises(ConfigurationError) as caught:
        await control.compare_and_swap(0, FIRST)
    assert f"{control.path}: cannot be written: " in str(caught.value)
    assert "cluster.data_dir must be a directory that this user can write" in str(caught.value)


@pytest.mark.skipif(not os.access("/proc", os.X_OK), reason="needs /proc, where even root cannot make files")
async def test_an_unwritable_directory_is_a_clear_error() -> None:
    with pytest.raises(
        ConfigurationError, match=r"/proc/placement\.json: cannot be written: .*data_dir must be a directory"
    ):
        await FileControlStore.in_directory("/proc").compare_and_swap(0, FIRST)


async def test_unreadable_file_is_clear_error(control: FileControlStore) -> None:
    control.path.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"placement\.json: cannot be read: Is a directory"):
        await control.read()


async def test_a_full_disk_leaves_the_old_placement(control: FileControlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> NoReturn:
        raise OSError(28, "No space left on device", "placement.tmp")

    await control.compare_and_swap(0, FIRST)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(ConfigurationError, match=r"No space left on device \(placement\.tmp\); .* space left"):
            await control.compare_and_swap(1, FIRST)
    assert await control.read() == msgspec.structs.replace(FIRST, revision=1)
    assert await control.compare_and_swap(1, FIRST)


def hold(lock_path: Path) -> int:
    """Take the lock as another process would."""
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


async def test_lock_held_too_long_is_clear_error(
    tmp_path: Path,
) -> None:
    control = FileControlStore(tmp_path / "placement.json", lock_wait_s=0.05)
    await control.compare_and_swap(0, FIRST)
    lock = hold(control.path.with_name("placement.lock"))
    try:
        with pytest.raises(
            ConfigurationError, match=r"placement\.lock: another process has held this lock for .*fuser"
        ):
            await control.compare_and_swap(1, FIRST)
        assert await control.read() is not None
    finally:
        os.close(lock)
    assert await control.compare_and_swap(1, FIRST)


async def test_swap_waits_for_the_present_lock(control: FileControlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await control.compare_and_swap(0, FIRST)
    waited = threading.Event()

    def wait(_pause_s: float) -> None:
        waited.set()
        released.wait(60)

    released = threading.Event()
    monkeypatch.setattr(time, "sleep", wait)
    lock_path = control.path.with_name("placement.lock")
    lock = hold(lock_path)
    swap = asyncio.create_task(control.compare_and_swap(1, FIRST))
    assert await asyncio.to_thread(waited.wait, 60)
    # The file is deleted by a cleanup: a lock on it excludes no other process, and its holder has to notice.
    lock_path.unlink()
    os.close(lock)
    released.set()
    assert await swap
    assert lock_path.exists()


async def test_watch_yields_placement_and_each_change(tmp_path: Path) -> None:
    control = FileControlStore(tmp_path / "placement.json", watch_interval_s=0.001)
    watch = control.watch()
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.01)
    assert not first.done()
    await control.compare_and_swap(0, FIRST)
    assert (await first).revision == 1
    for revision in (1, 2, 3):
        change = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.01)
        assert not change.done()
        await control.compare_and_swap(revision, FIRST)
        assert (await change).revision == revision + 1
    control.path.unlink()
    with pytest.raises(PlacementError, match=r"placement\.json: the placement is gone; restore placement\.json"):
        await anext(watch)


@pytest.mark.parametrize("watching", [False, True])
async def test_loop_goes_on_while_disk_hangs(control: FileControlStore, watching: bool) -> None:
    control.path.parent.mkdir(parents=True)
    os.mkfifo(control.path)  # its reader waits for a writer
    reading = asyncio.ensure_future(anext(control.watch()) if watching else control.read())
    await asyncio.sleep(0.01)
    assert not reading.done()
    await asyncio.to_thread(control.path.write_bytes, encode_placement(FIRST))
    assert await reading == FIRST
