"""A complete, small `perf save` on a cluster and peers of real processes."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dawnchorus.perf.harness.scratch import temporary_directory
from dawnchorus.perf.harness.workload import WorkloadError
from dawnchorus.perf.peers.postgres_peer import BINARIES
from dawnchorus.perf.saves.save import SaveOptions, save
from tests.support.children import children_left

HAS_REDIS = shutil.which("redis-server") is not None
HAS_POSTGRES = (BINARIES / "postgres").exists() and importlib.util.find_spec("asyncpg") is not None


def small(directory: Path, **changes: Any) -> SaveOptions:
    """Return options of a measurement of a few seconds."""
    settings: dict[str, Any] = {
        "agents": 60,
        "value_bytes": 50,
        "runs": 1,
        "singles": 20,
        "savers": 20,
        "concurrent_s": 0.05,
        "directory": directory,
    }
    return SaveOptions(**(settings | changes))


async def test_everything_is_measured_and_nothing_is_left() -> None:
    phases: list[str] = []
    with temporary_directory() as directory:  # not pytest's, which lets PostgreSQL's user not pass through
        directory.chmod(0o711)
        report = await save(small(directory), lambda phase, done, total: phases.append(phase))
        assert not children_left()
        assert not list(directory.iterdir())
    assert (report.agents, report.fragments, report.value_bytes, report.savers) == (60, 5, 50, 20)
    assert report.topology == "one-store" and " on " in report.file_system
    assert phases[-1] == "measure"
    assert 0 < report.save_many_ms.min <= report.save_many_ms.p50 <= report.save_many_ms.max
    assert min(report.concurrent_per_s, report.saving_per_s, report.peers.fdatasync_per_s) > 0
    measured = {name for name, value in msgspec.structs.asdict(report.ratios).items() if value is not None}
    assert ("saves_to_redis_sets" in measured) == ("saves_to_redis_packed" in measured) == HAS_REDIS
    assert ("saves_to_postgres" in measured) == HAS_POSTGRES
    assert {"single_to_raw_fsync", "concurrent_to_fdatasync", "wake_p99_saving_to_idle"} <= measured
    assert (report.batches.postgres is not None) == HAS_POSTGRES


async def test_peers_that_are_missing_are_named(tmp_path: Path) -> None:
    options = small(tmp_path, redis_server="no-such-server", postgres_binaries=tmp_path / "nowhere", singles=5)
    report = await save(options)
    assert [note for note in report.notes if note.startswith("Redis was not measured: no-such-server")]
    assert [note for note in report.notes if note.startswith("PostgreSQL was not measured: PostgreSQL 15 is not in")]
    assert report.peers.redis_sets_ms is report.peers.postgres_ms is None


@pytest.mark.parametrize("changes", [{"savers": 31}, {"runs": 0}, {"singles": 0}, {"concurrent_s": 0.0}])
async def test_options_that_contradict_each_other_are_rejected(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError):
        await save(small(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
