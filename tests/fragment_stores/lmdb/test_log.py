"""The log of the LMDB store: the rules of every engine."""

from pathlib import Path

import pytest

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.fragment_stores.lmdb import store as lmdb_store
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.wire.errors import LogTrimmed
from tests.fragment_stores.conformance import IDENTITY, commit, versions
from tests.fragment_stores.log_conformance import LogConformance, write


class TestLMDBLog(LogConformance):
    """LMDB through the rules of every engine's log."""

    @pytest.fixture(autouse=True)
    def _short_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lmdb_store, "LOG_ROWS_MAX", self.ROWS_MAX)

    def open(self, path: Path, *, create: bool = False, generation: int = 1) -> Shard:
        """Open a shard."""
        store = LMDBStore(path, IDENTITY, create=create)
        store.begin_generation(generation)
        return store

    def test_snapshot_keeps_its_log_despite_later_trimming(self, tmp_path: Path) -> None:
        store = LMDBStore(tmp_path / "shard", IDENTITY, create=True)
        store.begin_generation(1)
        made = versions(commit(store, [write(number) for number in range(10)], 1))
        with store.snapshot() as before:
            commit(store, [write(100 + number) for number in range(10)], 2)
            assert [version for version, _ in before.log_after(0, 100)] == made
            with store.snapshot() as after, pytest.raises(LogTrimmed):
                after.log_after(0, 100)
        store.close()
