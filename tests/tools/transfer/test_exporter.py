"""Exports of a cluster in memory: order, chunks, and agents that cannot be read completely."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from dawnchorus.tools.console.output import Problems
from dawnchorus.tools.transfer import exporter
from dawnchorus.tools.transfer.exporter import Exporter
from dawnchorus.tools.transfer.streams import OutputFile
from tests.tools.fakes import KeptBar, KeptCluster

KINDS = ("profile", "session")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is a matter of time."""
    monkeypatch.setattr(exporter, "ATTEMPT_PAUSE_S", 0.0)


async def listed(ids: Iterable[str]) -> AsyncIterator[str]:
    """Yield the ids, as a cluster lists them."""
    for agent_id in ids:
        yield agent_id


class Export:
    """One export of all agents of a cluster, and its result."""

    def __init__(self, cluster: KeptCluster, directory: Path, expiring: Sequence[str] = ()) -> None:
        self.cluster = cluster
        self.path = directory / "agents.ndjson"
        self.bar = KeptBar()
        self.problems = Problems(self.bar)
        self.exporter = Exporter(cluster, KINDS, expiring, self.problems)

    async def run(self) -> "Export":
        output = OutputFile(str(self.path))
        await self.exporter.export(listed(self.cluster.agents), output, self.bar, len(self.cluster.agents))
        output.commit()
        return self

    @property
    def lines(self) -> list[dict[str, object]]:
        return [orjson.loads(line) for line in self.path.read_bytes().splitlines()]


async def test_agents_are_written_in_order_with_kinds(tmp_path: Path) -> None:
    cluster = KeptCluster()
    cluster.agents = {"a": {"session": b"\x00", "profile": 1}, "b": {"profile": None}, "c": {"session": {}}}
    export = await Export(cluster, tmp_path).run()
    assert export.path.read_bytes() == (
        b'{"agent_id":"a","fragments":{"profile":1,"session":{"$bytes":"AA=="}}}\n'
        b'{"agent_id":"b","fragments":{"profile":null}}\n'
        b'{"agent_id":"c","fragments":{"session":{}}}\n'
    )
    totals = export.exporter.totals
    assert (totals.agents, totals.fragments, totals.bytes) == (3, 4, export.path.stat().st_size)


async def test_expiry_of_fragments_is_written(tmp_path: Path) -> None:
    cluster = KeptCluster()
    cluster.agents = {"a": {"session": 1, "profile": 1}, "b": {"profile": 2}}
    cluster.times = {"profile": datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)}
    export = await Export(cluster, tmp_path, ["session"]).run()
    assert [line.get("expires") for line in export.lines] == [
        {"profile": "2026-01-02T03:04:05.678Z", "session": None},
        {"profile": "2026-01-02T03:04:05.678Z"},
    ]


async def test_an_empty_cluster_gives_an_empty_file(tmp_path: Path) -> None:
    export = await Export(KeptCluster(), tmp_path).run()
    assert export.path.read_bytes() == b""


async def test_chunks_follow_the_size_of_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(exporter, "CHUNK_AGENTS_FIRST", 4)
    monkeypatch.setattr(exporter, "CHUNK_AGENTS_MAX", 50)
    cluster = KeptCluster()
    cluster.agents = {f"{number:03d}": {"profile": "x" * (2_000 if number < 10 else 5)} for number in range(300)}
    export = await Export(cluster, tmp_path).run()
    sizes = [len(call) for call in cluster.wake_calls]
    assert sizes[:2] == [4, 4]  # 10,000 bytes hold four of about 2,040
    assert max(sizes) <= 50
    assert sorted(sizes[2:-1]) == sizes[2:-1]  # small agents: ever larger chunks
    assert [line["agent_id"] for line in export.lines] == list(cluster.agents)


async def test_late_agent_is_written_in_its_place(tmp_path: Path) -> None:
    cluster = KeptCluster(degrade=lambda agent_id, call: ("session",) if agent_id == "b" and call < 2 else ())
    cluster.agents = {agent_id: {"profile": 1, "session": 2} for agent_id in "abc"}
    export = await Export(cluster, tmp_path).run()
    assert cluster.wake_calls == [["a", "b", "c"], ["b"], ["b"]]
    assert [line["agent_id"] for line in export.lines] == ["a", "b", "c"]
    assert export.problems.count == 0


async def test_incomplete_agent_is_named_and_left_out(tmp_path: Path) -> None:
    cluster = KeptCluster(degrade=lambda agent_id, _call: ("session",) if agent_id == "b" else ())
    cluster.agents = {agent_id: {"profile": 1, "session": 2} for agent_id in "abc"}
    cluster.agents["d"] = {"profile": [{1}]}
    cluster.agents["e"] = {}  # deleted after it was listed
    export = await Export(cluster, tmp_path).run()
    assert [line["agent_id"] for line in export.lines] == ["a", "c"]
    assert export.bar.printed == [
        "agent 'b' is left out: session TIMEOUT",
        "agent 'd' is left out: profile: JSON has no set",
    ]


async def test_an_output_that_fails_ends_the_export(tmp_path: Path) -> None:
    cluster = KeptCluster()
    cluster.agents = {f"{number:05d}": {"profile": 1} for number in range(5_000)}
    export = Export(cluster, tmp_path)
    output = OutputFile("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        await export.exporter.export(listed(cluster.agents), output, export.bar, None)
    assert len(cluster.wake_calls) < 5
