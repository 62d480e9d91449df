"""The measuring of memory on a small cluster of real processes: it works; its results are not tested."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dawnchorus.perf.harness.workload import WorkloadError
from dawnchorus.perf.memory.memory import MemoryOptions, memory, render_memory
from tests.support.children import children_left


async def test_memory_of_nodes_and_of_a_client(tmp_path: Path) -> None:
    phases: list[str] = []
    options = MemoryOptions(agents=1000, wake=500, value_bytes=2048, topology="one-store", storms=4, directory=tmp_path)
    report = await memory(options, lambda phase, done, total: phases.append(phase))
    assert not children_left()
    assert not list(tmp_path.iterdir())
    assert set(report.nodes) == {"state-1", "state-2"}
    assert all(0 < node.last <= node.peak for node in report.nodes.values())
    assert report.early_storm == 3 and phases.count("storms") == 4
    # 500 agents of 10 KB: a client that holds them has at least their bytes, and some of their pages stay after all but
    # 1 % are released.
    assert report.client.image_bytes > 500 * 5 * 2048
    assert report.client.woken - report.client.before > 0.9 * report.client.image_bytes
    assert report.client.kept_trimmed < report.client.woken
    console = Console(file=io.StringIO(), width=140)
    console.print(render_memory(report))
    assert isinstance(console.file, io.StringIO)
    assert "4 storms of 500 agents" in console.file.getvalue()


async def test_memory_options_that_cannot_be_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError):
        await memory(MemoryOptions(agents=10, wake=11, directory=tmp_path))
    with pytest.raises(WorkloadError):
        await memory(MemoryOptions(agents=10, wake=5, storms=1, directory=tmp_path))
