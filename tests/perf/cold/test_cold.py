"""The measuring of cold reads on a small cluster of real processes: it works; its speed is not tested."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dawnchorus.perf.cold.cold import ColdOptions, cold, render_cold
from dawnchorus.perf.harness.cold_files import drop, resident_pages, resident_share
from dawnchorus.perf.harness.workload import WorkloadError
from tests.support.children import children_left

pytestmark = pytest.mark.real


async def test_cold_storms_beside_warm_wakes(tmp_path: Path) -> None:
    options = ColdOptions(agents=12_000, wake=800, runs=2, idle_s=0.2, topology="one-store", directory=tmp_path)
    try:
        report = await cold(options)
    except WorkloadError as error:
        pytest.skip(str(error))
    assert not children_left()
    assert not list(tmp_path.iterdir())
    assert report.pages > 100, "the storm read the disk"
    assert 0 < report.idle.p50 <= report.idle.p99
    assert report.beside_wakes > 0 and report.p99_ratio > 0
    assert report.peer_ratio == pytest.approx(report.storm.p50 / report.peer.p50, abs=0.01)
    console = Console(file=io.StringIO(), width=140)
    console.print(render_cold(report))
    assert isinstance(console.file, io.StringIO)
    assert "2 storms of 800 cold agents of 12,000" in console.file.getvalue()


async def test_more_cold_agents_than_sleep_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be cold once each"):
        await cold(ColdOptions(agents=1_000, wake=500, runs=2, directory=tmp_path))


def test_pages_that_are_dropped_are_not_resident(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    assert resident_share([file]) == 1.0
    assert resident_pages(file) == b"\1" * 25
    drop([file])
    if resident_share([file]) == 1.0:
        pytest.skip("this file system keeps its files in memory")
    with file.open("rb", buffering=0) as opened:
        opened.read(1)
    assert resident_pages(file)[0] == 1
    (tmp_path / "empty").touch()
    assert resident_pages(tmp_path / "empty") == b""
