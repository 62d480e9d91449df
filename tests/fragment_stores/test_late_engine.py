"""The second engine, which answers late: the rules of every engine."""

from pathlib import Path

import pytest

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.fragment_stores.registry import engine_factory
from tests.fragment_stores.conformance import IDENTITY
from tests.fragment_stores.conformance_saves import SavesConformance
from tests.fragment_stores.log_conformance import LogConformance

pytestmark = pytest.mark.real  # it answers from a thread

ENGINE = "tests.support.late_engine:LateEngine"


class TestLateEngine(SavesConformance):
    """An engine in memory through the rules of every engine."""

    engine = ENGINE


class TestLateLog(LogConformance):
    """Its log."""

    def open(self, path: Path, *, create: bool = False, generation: int = 1) -> Shard:
        """Open a shard whose log keeps ten rows."""
        shard = engine_factory(ENGINE)({"log_rows_max": self.ROWS_MAX}).open(path, IDENTITY, create=create)
        shard.begin_generation(generation)
        return shard
