"""The log and the copies of the LMDB store: the rules of every engine."""

from pathlib import Path

import pytest

from dawnchorus.fragment_stores.engine import FragmentStore
from dawnchorus.fragment_stores.lmdb import store as lmdb_store
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from tests.fragment_stores.conformance import IDENTITY
from tests.fragment_stores.log_conformance import LogConformance


class TestLMDBLog(LogConformance):
    """LMDB through the rules of every engine's log."""

    @pytest.fixture(autouse=True)
    def _short_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lmdb_store, "LOG_ROWS_MAX", self.ROWS_MAX)

    def open(self, path: Path, *, create: bool = False, generation: int = 1) -> FragmentStore:
        """Open a shard."""
        store = LMDBStore(path, IDENTITY, create=create)
        store.begin_generation(generation)
        return store
