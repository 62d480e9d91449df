"""Files of LMDB's other formats: served if the installed py-lmdb reads them, and named if not."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb
import pytest

from dawnchorus.fragment_stores.lmdb.checker import FileVerifier
from dawnchorus.fragment_stores.lmdb.file_format import unreadable_format
from dawnchorus.fragment_stores.lmdb.identity import read_identity
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.wire.errors import StoreCorrupt, StoreError
from tests.fragment_stores.conformance import IDENTITY, commit, put, values

PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def new_store(path: Path) -> LMDBStore:
    store = LMDBStore(path, IDENTITY, create=True)
    store.begin_generation(1)
    return store


def set_format(file: Path, header_bytes: int, version: int) -> None:
    """Let both meta pages of an LMDB file say that it is of another format."""
    with file.open("r+b") as opened:
        for page in (0, 1):
            opened.seek(page * PAGE_BYTES + header_bytes + 4)
            opened.write(version.to_bytes(4, sys.byteorder))


@pytest.mark.parametrize(("version", "name"), [(2, "never released"), (4, "another version of LMDB")])
def test_file_of_unknown_format_is_named_not_corrupt(tmp_path: Path, version: int, name: str) -> None:
    new_store(tmp_path).close()
    set_format(tmp_path / "data.mdb", 16, version)
    for opens in (lambda: LMDBStore(tmp_path, IDENTITY, create=False), lambda: read_identity(tmp_path)):
        with pytest.raises(StoreError, match=rf"written in format {version} of .*{name}.*nothing is wrong") as raised:
            opens()
        assert not isinstance(raised.value, StoreCorrupt)
        assert "backup" not in str(raised.value)
    with FileVerifier() as verifier:
        [finding], _ = verifier.verify(tmp_path / "data.mdb")
    assert finding.where == "format"
    assert "nothing is wrong with it" in finding.detail


def test_file_of_lmdb_1_is_served_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lmdb.open(str(tmp_path), lib_version=1).close()
    made = new_store(tmp_path)
    commit(made, [put("a", b"1")], 1)
    made.close()
    assert unreadable_format(tmp_path) == ""
    again = LMDBStore(tmp_path, IDENTITY, create=False)
    assert values(again, [b"a"] * 40) == [b"1"] * 40
    again.close()

    def only_the_older(*, lib_version: int) -> tuple[int, int, int]:
        if lib_version:
            raise lmdb.Error("this build has no LMDB 1.x engine")
        return (0, 9, 36)

    def not_mine(*_: object, **__: object) -> lmdb.Environment:
        raise lmdb.InvalidError("MDB_INVALID: File is not an LMDB file")

    monkeypatch.setattr(lmdb, "version", only_the_older)
    monkeypatch.setattr(lmdb, "open", not_mine)
    with pytest.raises(StoreError, match=r"format 3 of LMDB 1.0.*nothing is wrong"):
        LMDBStore(tmp_path, IDENTITY, create=False)


def test_new_shard_is_of_the_faster_lmdb_engine(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        import lmdb
        from dawnchorus.fragment_stores.lmdb.store import LMDBStore
        from tests.fragment_stores.conformance import IDENTITY

        assert lmdb.version() >= (1, 0, 0)
        LMDBStore(Path(sys.argv[1]), IDENTITY, create=True).close()
    """
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        env={**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    with lmdb.open(str(tmp_path), readonly=True) as environment:
        assert environment.lib_version() < (1, 0, 0)
