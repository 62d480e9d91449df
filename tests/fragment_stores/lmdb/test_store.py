"""The LMDB store: the rules of every engine, and the failures that only LMDB can have."""

import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import lmdb
import pytest

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.fragment_stores.lmdb import environment as lmdb_file
from dawnchorus.fragment_stores.lmdb import shard_file
from dawnchorus.fragment_stores.lmdb import store as lmdb_store
from dawnchorus.fragment_stores.lmdb.identity import read_identity
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.wire.errors import StoreCorrupt, StoreError, StoreFull
from dawnchorus.wire.protocol.messages import DeleteAgent, Rejection, RejectionCode
from dawnchorus.wire.protocol.versions import first_version
from tests.fragment_stores.conformance import (
    IDENTITY,
    commit,
    images_of,
    put,
    read,
    read_batch,
    value_of,
    values,
    versions,
    write,
)
from tests.fragment_stores.conformance_saves import SavesConformance, again
from tests.fragment_stores.file_conformance import FileConformance

PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class TestLMDBStore(SavesConformance, FileConformance):
    """LMDB through the rules of every engine."""

    engine = "lmdb"


def new_store(path: Path, generation: int = 1) -> LMDBStore:
    store = LMDBStore(path, IDENTITY, create=True)
    store.begin_generation(generation)
    return store


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program that may end by a signal."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# Opens the shard in each directory and reads everything in it; one line each.
READER = """
    import sys
    from pathlib import Path
    from dawnchorus.fragment_stores.lmdb.identity import read_identity
    from dawnchorus.fragment_stores.lmdb.store import LMDBStore
    from dawnchorus.wire.errors import StoreError
    from tests.fragment_stores.conformance import IDENTITY, ids_after, read

    for directory in sys.argv[1:]:
        outcomes = []
        try:
            store = LMDBStore(Path(directory), IDENTITY, create=False)
        except StoreError as error:
            outcomes.append(type(error).__name__)
        else:
            store.begin_generation(1000)
            agents = ids_after(store, b"", 100_000)
            read(store, agents)
            outcomes.append(f"{len(agents)} {len(store.log_after(0, 100_000))}")
            store.close()
        try:
            outcomes.append("identity" if read_identity(Path(directory)) == IDENTITY else "none")
        except StoreError as error:
            outcomes.append(type(error).__name__)
        print(*outcomes, flush=True)
"""


def test_lmdb_store_type_checks_as_a_shard(tmp_path: Path) -> None:
    store: Shard = new_store(tmp_path)
    store.close()


# --- corrupt files ---


def test_truncated_file_is_rejected_without_killing_its_reader(tmp_path: Path) -> None:
    store = new_store(tmp_path / "intact")
    source = random.Random(1)
    for _ in range(10):
        commit(store, [put(f"agent-{number}", source.randbytes(3_000)) for number in range(100)], 1)
    store.close()
    size = (tmp_path / "intact" / "data.mdb").stat().st_size
    pages = size // PAGE_BYTES
    cuts = [0, 1, 100, PAGE_BYTES, PAGE_BYTES + 1, 2 * PAGE_BYTES, 3 * PAGE_BYTES, pages // 2 * PAGE_BYTES]
    cuts += [pages // 2 * PAGE_BYTES + 77, size - 2 * PAGE_BYTES, size - PAGE_BYTES, size - 1]
    directories = [shutil.copytree(tmp_path / "intact", tmp_path / f"cut-{cut}") for cut in cuts]
    for cut, directory in zip(cuts, directories, strict=True):
        os.truncate(directory / "data.mdb", cut)
    ended = run(READER, tmp_path / "intact", *directories)
    assert ended.returncode == 0, f"ended by {-ended.returncode}, after {ended.stdout!r}: {ended.stderr}"
    intact, *corrupt = ended.stdout.splitlines()
    assert intact == "100 1000 identity"
    assert {line.split()[0] for line in corrupt} == {"StoreCorrupt"}
    assert {line.split()[-1] for line in corrupt} <= {"StoreCorrupt", "StoreError"}
    assert [directory.joinpath("data.mdb").stat().st_size for directory in directories] == cuts, (
        "corrupt data was overwritten"
    )


def test_intact_file_without_its_last_page_is_served(tmp_path: Path) -> None:
    # LMDB does not write pages that were allocated and freed in one transaction, even if they are the file's last.
    store = new_store(tmp_path)
    commit(store, [put(f"kept-{number}", b"v" * 2_000) for number in range(20)], 1)
    short_lived = [f"agent-{number}" for number in range(500)]
    writes = [put(agent, b"x" * 3_000) for agent in short_lived]
    writes += [write(agent.encode(), DeleteAgent()) for agent in short_lived]
    commit(store, writes, 1)
    store.close()
    environment = lmdb.open(str(tmp_path), readonly=True)
    last_page = environment.info()["last_pgno"]
    environment.close()
    assert (tmp_path / "data.mdb").stat().st_size < (last_page + 1) * PAGE_BYTES, "LMDB has changed: no such file"
    assert run(READER, tmp_path).stdout.split() == ["20", "1020", "identity"]
    # Neither reopening nor a further commit changes that.
    with TestLMDBStore.opened(tmp_path) as again:
        assert values(again, [b"kept-7"]) == [b"v" * 2_000]
        again.begin_generation(2)
        assert versions(commit(again, [put("new")], 1))


def test_slow_walk_does_not_prove_file_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    commit(store, [put(f"agent-{number}", b"x" * 3_000) for number in range(500)], 1)
    store.close()
    os.truncate(tmp_path / "data.mdb", 100 * PAGE_BYTES)
    monkeypatch.setattr(lmdb_file, "_WALK", "import time; time.sleep(60)")
    monkeypatch.setattr(lmdb_file, "_WALK_SECONDS_MAX", 0.1)
    with pytest.raises(StoreCorrupt, match=r"has lost its end: it has only 409,600 bytes; restore a backup"):
        LMDBStore(tmp_path, IDENTITY, create=False)


@pytest.mark.parametrize("content", [b"nothing" * 2_000, bytes(100_000)])
def test_file_of_something_else_is_rejected_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    for create in (False, True):
        with pytest.raises(StoreCorrupt, match="corrupt"):
            LMDBStore(tmp_path, IDENTITY, create=create)
    with pytest.raises(StoreCorrupt, match="corrupt"):
        read_identity(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == content


@pytest.mark.parametrize("key", [b"identity", b"clock"])
@pytest.mark.parametrize("value", [None, b"", b"\x96\x01\xa1\xff", b"\x93\x01\x02\x03"])
def test_shard_without_identity_or_clock_is_rejected(tmp_path: Path, key: bytes, value: bytes | None) -> None:
    new_store(tmp_path).close()
    environment = lmdb.open(str(tmp_path), max_dbs=4)
    meta = environment.open_db(b"meta")
    with environment.begin(meta, write=True) as transaction:
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)
    environment.close()
    with pytest.raises(StoreCorrupt, match="restore a backup"):
        LMDBStore(tmp_path, IDENTITY, create=False)


@pytest.mark.parametrize("database", [b"images", b"log", b"expiry", b"meta"])
def test_shard_without_one_database_is_rejected(tmp_path: Path, database: bytes) -> None:
    new_store(tmp_path).close()
    environment = lmdb.open(str(tmp_path), max_dbs=4)
    with environment.begin(write=True) as transaction:
        transaction.drop(environment.open_db(database, transaction))
    environment.close()
    with pytest.raises(StoreCorrupt):
        LMDBStore(tmp_path, IDENTITY, create=False)


def test_corrupt_image_rejects_only_its_agents_writes(tmp_path: Path) -> None:
    new_store(tmp_path).close()
    environment = lmdb.open(str(tmp_path), max_dbs=4)
    with environment.begin(environment.open_db(b"images"), write=True) as transaction:
        transaction.put(b"bad", b"no image")
    environment.close()
    with TestLMDBStore.opened(tmp_path) as store:
        store.begin_generation(1)
        bad, good = commit(store, [put("bad"), put("good")], 1)
        assert isinstance(bad, Rejection)
        assert "corrupt" in bad.reason
        assert isinstance(good, int)
        assert [bytes(image) for image in read(store, [b"bad"])] == [b"no image"]


def test_corrupt_row_of_the_log_is_named(tmp_path: Path) -> None:
    new_store(tmp_path).close()
    for row in (b"no row", b"\x93\xc4\x01a\xc4\x01w\x91\x92\x01\xa1\xff"):
        environment = lmdb.open(str(tmp_path), max_dbs=4)
        with environment.begin(environment.open_db(b"log"), write=True) as transaction:
            transaction.put((1 << 40).to_bytes(8, "big"), row)
        environment.close()
        with pytest.raises(StoreCorrupt, match="row of the log is corrupt"):
            LMDBStore(tmp_path, IDENTITY, create=False)


# --- durability ---


def test_environment_flags_keep_commits_durable(tmp_path: Path) -> None:
    # Only a crash of the machine would show their absence.
    store = new_store(tmp_path)
    flags = vars(store)["_environment"].flags()
    store.close()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert not flags["map_async"]


# --- the machine's limits ---


def test_too_little_address_space_is_one_clear_error(tmp_path: Path) -> None:
    ended = run(
        """
        import resource, sys
        from pathlib import Path
        from dawnchorus.fragment_stores.lmdb.store import LMDBStore
        from dawnchorus.wire.errors import StoreError
        from tests.fragment_stores.conformance import IDENTITY

        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        try:
            LMDBStore(Path(sys.argv[1]), IDENTITY, create=True)
        except StoreError as error:
            print(type(error).__name__, error)
        """,
        tmp_path / "shard",
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        f"StoreError {tmp_path}/shard: the system gives no 64 GiB of address space for the map; raise `ulimit -v`\n"
    )


def test_full_map_rejects_the_commit_and_serves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "MAP_BYTES", 1 << 20)
    monkeypatch.setattr(shard_file, "MAP_BYTES_MAX", 1 << 20)
    store = new_store(tmp_path)
    commit(store, [put("a", b"kept")], 1)
    version = store.version
    for _ in range(2):
        with pytest.raises(StoreFull, match="map is full"):
            commit(store, [put("a", b"lost"), put("b", bytes(1 << 20))], 2)
    assert store.version == version
    assert values(store, [b"a", b"b"]) == [b"kept", None]
    assert len(store.log_after(0, 10)) == 1
    assert versions(commit(store, [put("c")], 3)) == [version + 1]
    store.close()


def test_file_that_cannot_grow_rejects_commit_without_loss(tmp_path: Path) -> None:
    # RLIMIT_FSIZE stands in for a full disk: write(2) fails in the middle of a commit.
    ended = run(
        """
        import resource, signal, sys
        from pathlib import Path
        from dawnchorus.fragment_stores.lmdb.store import LMDBStore
        from dawnchorus.wire.errors import StoreError
        from tests.fragment_stores.conformance import IDENTITY, commit, put, values

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = LMDBStore(Path(sys.argv[1]), IDENTITY, create=True)
        store.begin_generation(1)
        commit(store, [put("a", b"kept")], 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, -1))
        rejected = 0
        for number in range(3):
            try:
                commit(store, [put("a", b"lost"), put("b", bytes(1 << 20))], 2)
            except StoreError as error:
                rejected += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        commit(store, [put("c", b"later")], 3)
        print(rejected, *values(store, [b"a", b"b", b"c"]))
        store.close()
        """,
        tmp_path,
    )
    assert (ended.returncode, ended.stdout) == (0, "3 b'kept' None b'later'\n"), ended.stderr
    assert run(READER, tmp_path).stdout.split() == ["2", "2", "identity"]


def test_reads_beyond_reader_slots_fail_and_harm_nothing(tmp_path: Path) -> None:
    with TestLMDBStore.opened(tmp_path, create=True) as store:
        store.begin_generation(1)
        commit(store, [put("a")], 1)
        batches = [read_batch(store, [b"a"]) for _ in range(512)]
        with pytest.raises(StoreError, match="MDB_READERS_FULL"):
            read_batch(store, [b"a"])
        commit(store, [put("a", b"new")], 1)
        while batches:  # LMDB's reader slots are freed with the objects
            batches.pop().close()
        assert values(store, [b"a"]) == [b"new"]


def test_readers_of_killed_processes_are_cleared_on_open(tmp_path: Path) -> None:
    new_store(tmp_path).close()
    program = """
        import os, signal, sys
        from pathlib import Path
        from dawnchorus.fragment_stores.lmdb.store import LMDBStore
        from tests.fragment_stores.conformance import IDENTITY
        store = LMDBStore(Path(sys.argv[1]), IDENTITY, create=False)
        snapshots = [store.snapshot() for _ in range(300)]
        os.kill(os.getpid(), signal.SIGKILL)
        """
    for _ in range(2):
        assert run(program, tmp_path).returncode == -9
    with TestLMDBStore.opened(tmp_path) as store:
        batches = [read_batch(store, [b"a"]) for _ in range(400)]
        for batch in batches:
            batch.close()


# --- the log's length ---


def test_the_log_is_trimmed_to_its_newest_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "LOG_ROWS_MAX", 10)
    store = new_store(tmp_path)
    found: list[int] = []
    for group in (4, 4, 4, 1, 9, 25):
        found += versions(commit(store, [put(f"agent-{len(found) + number}") for number in range(group)], 1))
        trimmed = store.log_trimmed()
        assert trimmed == (found[-11] if len(found) > 10 else 0)
        assert [version for version, _ in store.log_after(trimmed, 100)] == found[-10:]
        assert store.statistics().log_rows == min(len(found), 10)
    store.close()
    with TestLMDBStore.opened(tmp_path) as again:
        assert (again.statistics().log_rows, again.statistics().agents) == (10, len(found))
        again.begin_generation(2)
        commit(again, [put("a")], 1)
        assert again.statistics().log_rows == 10


def test_longer_log_is_trimmed_by_next_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    commit(store, [put(f"agent-{number}") for number in range(30)], 1)
    monkeypatch.setattr(lmdb_store, "LOG_ROWS_MAX", 10)
    assert commit(store, [write(b"nobody", DeleteAgent())], 1) == [0]
    commit(store, [put("a")], 1)
    assert store.statistics().log_rows == 10
    store.close()


def test_repeated_write_beyond_the_log_is_indeterminate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "LOG_ROWS_MAX", 10)
    store = new_store(tmp_path)
    seen = store.version
    applied, never = put("a", b"1"), put("never", b"1")
    [version] = versions(commit(store, [applied], 1))
    commit(store, [put(f"other-{number}") for number in range(9)], 1)
    assert commit(store, [again(applied, seen)], 1) == [version], "the last moment at which it is known"
    [other] = versions(commit(store, [put("a", b"2")], 1))
    for generation in (2, 3):
        for write_ in (applied, never):
            [result] = commit(store, [again(write_, seen)], 1)
            assert isinstance(result, Rejection)
            assert result.code == RejectionCode.INDETERMINATE
            assert str(version) in result.reason, "the rejection says how far the log reaches back"
        assert values(store, [b"a", b"never"]) == [b"2", None]
        store.close()
        store = LMDBStore(tmp_path, IDENTITY, create=False)
        store.begin_generation(generation)
    # A write first sent after the log's beginning was seen is determinate; so is one sent for the first time.
    assert isinstance(commit(store, [again(never, version)], 1)[0], int)
    assert isinstance(commit(store, [put("new")], 1)[0], int)
    assert isinstance(commit(store, [again(put("newer"), other)], 1)[0], int)
    store.close()


# --- a map that grows, and an environment that LMDB has abandoned ---


def test_a_full_map_grows_while_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "MAP_BYTES", 1 << 20)
    store = new_store(tmp_path)
    first = put("first", b"1")
    [version] = versions(commit(store, [first], 1))
    ended = threading.Event()
    seen: set[bytes | None] = set()

    def look() -> None:
        while not ended.is_set():
            seen.update(values(store, [b"first"]))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for number in range(40):
            assert versions(commit(store, [put(f"agent-{number}", bytes(200_000))], 1)) == [version + 1 + number]
    finally:
        ended.set()
        looker.join()
    assert seen == {b"1"}
    assert commit(store, [again(first)], 1) == [version], "retries are known beyond it"
    store.close()
    with TestLMDBStore.opened(tmp_path) as reopened:
        assert reopened.statistics().agents == 41
        reopened.begin_generation(2)
        assert versions(commit(reopened, [put("more", bytes(900_000))], 1))


def test_full_map_cannot_grow_under_open_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "MAP_BYTES", 1 << 20)
    monkeypatch.setattr(shard_file, "_REOPEN_PATIENCE_S", 0.01)
    store = new_store(tmp_path)
    commit(store, [put("a", b"1")], 1)
    batch = read_batch(store, [b"a"])
    for _ in range(2):
        with pytest.raises(StoreFull, match="cannot grow now"):
            commit(store, [put("b", bytes(1 << 20))], 1)
    assert [value_of(image) for image in images_of(store, batch)] == [b"1"]
    assert versions(commit(store, [put("c")], 1))
    batch.close()
    assert versions(commit(store, [put("b", bytes(1 << 20))], 1))
    store.close()


def test_generation_without_write_survives_growth_of_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "MAP_BYTES", 1 << 20)
    store = new_store(tmp_path, generation=5)
    assert versions(commit(store, [put("a", bytes(1 << 20))], 1)) == [first_version(5) + 1]
    store.close()


# Commits ten times while strace makes one of its system calls fail; checks each outcome and what is read after it.
FAILING = """
    import sys
    from pathlib import Path
    from dawnchorus.fragment_stores.lmdb.store import LMDBStore
    from dawnchorus.wire.errors import StoreError
    from tests.fragment_stores.conformance import IDENTITY, commit, put, values

    store = LMDBStore(Path(sys.argv[1]), IDENTITY, create=False)
    store.begin_generation(2)
    there, writes, outcomes = b"old", [], []
    for number in range(10):
        writes.append(put("a", b"%d" % number))
        before = store.version
        try:
            [version] = commit(store, writes[-1:], 1)
            assert version == before + 1, (version, before)
            there = b"%d" % number
            outcomes.append("ok")
        except StoreError as error:
            assert store.version == before
            outcomes.append(type(error).__name__)
        assert values(store, [b"a"]) == [there], (number, outcomes, values(store, [b"a"]))
    for write in writes:
        [version] = commit(store, [write], 1)
        assert isinstance(version, int)
    store.close()
    print(*outcomes)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no system call can be made fail")
@pytest.mark.parametrize(
    ("failing", "numbers", "error"),
    [
        ("pwrite64:error=ENOSPC", range(6, 9), "StoreFull"),
        ("pwrite64:error=EIO", range(9, 12), "StoreError"),
        ("fdatasync:error=EIO", range(6, 7), "StoreError"),
    ],
)
def test_store_knows_outcome_of_any_failing_system_call(
    tmp_path: Path, failing: str, numbers: range, error: str
) -> None:
    call = failing.split(":")[0]
    files: set[str] = set()
    for number in numbers:
        directory = tmp_path / str(number)
        store = new_store(directory)
        commit(store, [put("a", b"old")], 1)
        store.close()
        log = tmp_path / "strace.log"
        command = ["strace", "-f", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={failing}:when={number}"]
        program = [sys.executable, "-c", textwrap.dedent(FAILING), str(directory)]
        ended = subprocess.run([*command, *program], capture_output=True, text=True, timeout=60, check=False)
        if "ptrace" in ended.stderr:
            pytest.skip("strace may not trace here")
        assert ended.returncode == 0, ended.stderr
        [injected] = [line for line in log.read_text().splitlines() if "INJECTED" in line]
        files.add(injected.split("(")[1].split(",")[0].rstrip(")"))
        assert sorted(ended.stdout.split()) == [error] + ["ok"] * 9
    # Data and the meta page have descriptors of their own: if the second fails, LMDB abandons the environment.
    assert len(files) == (2 if call == "pwrite64" else 1)


# --- whose shard is this ---


def test_a_shards_identity_is_read_without_opening_it(tmp_path: Path) -> None:
    assert read_identity(tmp_path / "nowhere") is None
    assert read_identity(tmp_path) is None
    store = new_store(tmp_path)
    store.close()
    assert read_identity(tmp_path) == IDENTITY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.mdb", "lock.mdb"]


def test_environment_without_shard_has_no_identity(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path), max_dbs=4).close()
    assert read_identity(tmp_path) is None
