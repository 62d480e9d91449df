"""The record that a node leaves behind when a fault ends it, and its use at the next start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dawnchorus.fragment_stores.engine import FORMAT, ShardIdentity
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.fragment_stores.registry import file_engine
from dawnchorus.nodes.crash_record import CrashRecord, find_corrupt
from dawnchorus.wire.protocol.messages import Put, Write

PAGE_BYTES = os.sysconf("SC_PAGESIZE")

PROGRAM = """
import os, signal, sys
from pathlib import Path
from dawnchorus.nodes.crash_record import CrashRecord
with CrashRecord(Path(sys.argv[1])) as crashes:
    print(crashes.suspicious, flush=True)
    crashes.damaged = "damaged" in sys.argv
    if sys.argv[2] != "end":
        os.kill(os.getpid(), int(sys.argv[2]))
"""


def node(directory: Path, how: object, *arguments: str) -> bool:
    """Run a process that ends like this; return whether it found that the one before it was ended by a fault."""
    command = [sys.executable, "-c", PROGRAM, str(directory), str(how), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if how == "end" else -int(str(how))), ended.stderr
    return ended.stdout == "True\n"


@pytest.mark.parametrize("fault", [signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV])
def test_a_fault_is_remembered_until_an_orderly_end(tmp_path: Path, fault: signal.Signals) -> None:
    assert not node(tmp_path, int(fault))
    assert node(tmp_path, int(signal.SIGKILL))
    assert node(tmp_path, "end", "damaged"), "SIGKILL is no orderly end"
    assert node(tmp_path, "end"), "damage was found: it is looked for again"
    assert not node(tmp_path, "end")


def test_a_kill_is_no_fault(tmp_path: Path) -> None:
    assert not node(tmp_path, int(signal.SIGKILL))
    assert not node(tmp_path, "end")


def test_only_corrupt_shards_are_found(tmp_path: Path) -> None:
    directories = [tmp_path / f"{shard:04d}" for shard in range(4)]
    for shard, directory in enumerate(directories[:3]):
        store = LMDBStore(directory, ShardIdentity(FORMAT, "ab" * 16, "live", shard, 4, 1), create=True)
        store.begin_generation(1)
        store.commit([Write(b"agent-%d" % n, b"%d" % n, 0, [Put("a", 0, 0, bytes(3_000))]) for n in range(50)], 1, 1)
        store.close()
    file = directories[1] / "data.mdb"
    content = file.read_bytes()
    file.write_bytes(content[: 2 * PAGE_BYTES] + bytes(len(content) - 2 * PAGE_BYTES))
    # Agents of other shards in shards 0 and 2 are findings too, but no reason not to serve them.
    files = file_engine("lmdb")
    assert files is not None
    corrupt = find_corrupt(files, directories)
    assert list(corrupt) == [directories[1]]
    assert str(directories[1]) in corrupt[directories[1]]


def test_crash_record_is_removed_after_orderly_end(tmp_path: Path) -> None:
    import faulthandler

    before = faulthandler.is_enabled()
    try:
        with CrashRecord(tmp_path) as crashes:
            assert not crashes.suspicious
        assert not list(tmp_path.iterdir())
    finally:
        if before:
            faulthandler.enable()
