"""Loads into a cluster in memory: order, copies, limits, errors named by line, repeated saves."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from dawnchorus.tools.console.output import PROBLEMS_LISTED_MAX, PROBLEMS_SHOWN_MAX, Problems
from dawnchorus.tools.transfer import loader
from dawnchorus.tools.transfer.loader import Loader, LoadStopped
from dawnchorus.tools.transfer.streams import LineReader
from dawnchorus.wire.errors import (
    ClusterUnavailable,
    DawnchorusError,
    DeadlineExceeded,
    InvalidRequestError,
    SaveIncomplete,
    SaveRejected,
)
from dawnchorus.wire.protocol.limits import FRAGMENT_BYTES_MAX
from tests.tools.fakes import KeptBar, KeptCluster

KINDS = ("profile", "session")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is a matter of time."""
    monkeypatch.setattr(loader, "ATTEMPT_PAUSE_S", 0.0)


def line_of(agent_id: object, **fragments: object) -> bytes:
    """Return one line as another program might write it."""
    return orjson.dumps({"agent_id": agent_id, "fragments": fragments})


class Load:
    """One load of these lines, and its result."""

    def __init__(self, cluster: Any, directory: Path, lines: list[bytes], copies: int = 1) -> None:
        self.path = directory / "agents.ndjson"
        self.path.write_bytes(b"\n".join(lines))
        self.bar = KeptBar()
        self.problems = Problems(self.bar)
        self.loader = Loader(cluster, KINDS, copies, self.problems)

    async def run(self) -> "Load":
        await self.loader.load(LineReader(str(self.path), 3 * FRAGMENT_BYTES_MAX), self.bar)
        self.problems.finish()
        return self


async def test_agents_are_saved_with_their_copies(tmp_path: Path) -> None:
    cluster = KeptCluster()
    load = await Load(cluster, tmp_path, [line_of("a", profile=1), b"", b"  \r", line_of("b/é", session=[2])], 3).run()
    assert cluster.agents == {
        "a": {"profile": 1},
        "a~1": {"profile": 1},
        "a~2": {"profile": 1},
        "b/é": {"session": [2]},
        "b/é~1": {"session": [2]},
        "b/é~2": {"session": [2]},
    }
    assert load.problems.count == 0
    totals = load.loader.totals
    assert (totals.lines, totals.agents, totals.fragments) == (4, 6, 6)
    assert totals.bytes == 3 * (len(line_of("a", profile=1)) + len(line_of("b/é", session=[2])))


async def test_a_time_of_expiry_is_saved_as_one(tmp_path: Path) -> None:
    cluster = KeptCluster()
    expires = b'{"profile": "1970-01-01T00:00:01.5Z", "session": null}'
    lines = [
        b'{"agent_id": "a", "fragments": {"profile": 1, "session": {"$map": [[1, 2]]}}, "expires": %s}' % expires,
        b'{"agent_id": "a", "fragments": {"session": 3}}',
        b'{"agent_id": "b", "fragments": {"profile": 1, "session": 2}, "expires": %s}' % expires,
    ]
    await Load(cluster, tmp_path, lines, 2).run()
    assert cluster.agents == {
        "a": {"profile": 1, "session": 3},
        "a~1": {"profile": 1, "session": 3},
        "b": {"profile": 1, "session": 2},
        "b~1": {"profile": 1, "session": 2},
    }
    assert cluster.expires_ms["a"] == {"profile": 1_500}, "a later line of the kind says nothing: as the topology does"
    assert cluster.expires_ms["b~1"] == {"profile": 1_500, "session": 0}


async def test_load_cut_short_counts_unknown_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way = asyncio.Event()

    class Waiting(KeptCluster):
        async def save_many(self, agents: Any, *, deadline_s: float | None = None) -> Any:
            if "late" in agents:
                under_way.set()
                await asyncio.Event().wait()
            return await super().save_many(agents, deadline_s=deadline_s)

    monkeypatch.setattr(loader, "BATCH_AGENTS_MAX", 2)
    lines = [line_of(agent_id, profile=1) for agent_id in ("a", "b", "late", "later", "left")]
    load = Load(Waiting(), tmp_path, lines)
    reading = asyncio.create_task(load.run())
    await under_way.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert load.loader.totals.agents == 2
    assert load.loader.unknown in (2, 3), "with the last one or before it was sent"


async def test_broken_lines_are_named_by_number(tmp_path: Path) -> None:
    cluster = KeptCluster()
    lines = [
        line_of("a", profile=1),
        b'{"agent_id": "b"',
        line_of("c", profile=1, age=7),
        line_of(5, profile=1),
        line_of("é" * 128 + "x", profile=1),
        line_of("d", profile="x" * FRAGMENT_BYTES_MAX),
        b'{"agent_id": "' + b"e" * (4 * FRAGMENT_BYTES_MAX),
        line_of("f", session=2),
        line_of("g" * 255, session=2),
    ]
    load = await Load(cluster, tmp_path, lines, copies=2).run()
    assert list(cluster.agents) == ["a", "a~1", "f", "f~1"]
    assert [problem["line"] for problem in load.problems.listed] == [2, 3, 4, 5, 6, 7, 9]
    expected = ["not JSON", "unknown kind 'age'", "must be a string", "257 bytes", "the limit is", "longer", "no room"]
    for message, part in zip(load.bar.printed, expected, strict=True):
        assert part in message
    assert load.bar.printed[1] == "line 3: unknown kind 'age'; the topology has profile, session"


async def test_a_value_exactly_at_the_limit_is_loaded(tmp_path: Path) -> None:
    cluster = KeptCluster()
    value = "x" * (FRAGMENT_BYTES_MAX - 5)  # msgpack's str 32 has five bytes before its text
    load = await Load(cluster, tmp_path, [line_of("a", profile=value), line_of("b", profile=value + "x")]).run()
    assert list(cluster.agents) == ["a"]
    assert load.problems.count == 1


async def test_many_problems_are_kept_up_to_limit(tmp_path: Path) -> None:
    load = await Load(KeptCluster(), tmp_path, [b"nonsense"] * (PROBLEMS_LISTED_MAX + 5)).run()
    assert load.problems.count == PROBLEMS_LISTED_MAX + 5
    assert len(load.problems.listed) == PROBLEMS_LISTED_MAX
    assert len(load.bar.printed) == PROBLEMS_SHOWN_MAX + 1
    assert load.bar.printed[-1] == f"... and {PROBLEMS_LISTED_MAX + 5 - PROBLEMS_SHOWN_MAX} more problems"


async def test_batches_are_bounded_in_agents_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BATCH_AGENTS_MAX", 3)
    monkeypatch.setattr(loader, "BATCH_BYTES", 1000)
    cluster = KeptCluster()
    lines = [line_of(str(number), profile="x" * (600 if number >= 7 else 1)) for number in range(11)]
    await Load(cluster, tmp_path, lines).run()
    assert cluster.save_calls == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9", "10"]]


async def test_lines_of_one_agent_keep_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BATCH_AGENTS_MAX", 2)
    under_way: list[str] = []

    class SlowCluster(KeptCluster):
        async def save_many(self, agents: Any, *, deadline_s: float | None = None) -> Any:
            assert not set(under_way) & set(agents), "two saves of one agent at once"
            under_way.extend(agents)
            for _ in range(20):
                await asyncio.sleep(0)
            for agent_id in agents:
                under_way.remove(agent_id)
            return await super().save_many(agents, deadline_s=deadline_s)

    cluster = SlowCluster()
    lines = [
        line_of("a", profile=1),
        line_of("a", session=1),
        line_of("b", profile=1),
        line_of("a", profile=2),
        line_of("c", profile=1),
        line_of("a", profile=3),
    ]
    await Load(cluster, tmp_path, lines).run()
    assert cluster.agents["a"] == {"profile": 3, "session": 1}
    assert cluster.save_calls == [["a", "b"], ["a", "c"], ["a"]]


def late(agent_id: str) -> DawnchorusError:
    return DeadlineExceeded("too late", agent_id=agent_id, write_id="00")


async def test_what_was_not_acknowledged_is_saved_again(tmp_path: Path) -> None:
    cluster = KeptCluster(fail_save=lambda agent_id, call: late(agent_id) if agent_id == "b" and call < 2 else None)
    load = await Load(cluster, tmp_path, [line_of("a", profile=1), line_of("b", profile=1)]).run()
    assert cluster.save_calls == [["a", "b"], ["b"], ["b"]]
    assert load.problems.count == 0
    assert load.loader.totals.agents == 2


async def test_permanently_rejected_save_is_not_repeated(tmp_path: Path) -> None:
    rejected = {"live": "the agent's image would have 3,000,000 bytes; the limit is 2,097,152"}
    cluster = KeptCluster(
        fail_save=lambda agent_id, _call: (
            SaveRejected(agent_id="b", write_id="00", rejected=rejected) if agent_id == "b" else None
        )
    )
    load = await Load(cluster, tmp_path, [line_of("a", profile=1), line_of("b", profile=1)]).run()
    assert cluster.save_calls == [["a", "b"]]
    assert load.problems.listed == [
        {
            "line": 2,
            "agent_id": "b",
            "problem": "line 2: agent 'b': save rejected: live: the agent's image would have 3,000,000 bytes;"
            " the limit is 2,097,152",
        }
    ]


async def test_cluster_saving_nothing_ends_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BATCH_AGENTS_MAX", 10)
    cluster = KeptCluster(fail_save=lambda agent_id, _call: late(agent_id) if int(agent_id) >= 10 else None)
    load = Load(cluster, tmp_path, [line_of(str(number), profile=1) for number in range(1000)])
    with pytest.raises(LoadStopped, match="10 saves in a row failed, 3 times over"):
        await load.run()
    assert load.loader.totals.agents == 10
    assert load.loader.totals.lines < 100


async def test_agent_making_call_impossible_fails_alone(tmp_path: Path) -> None:
    class PickyCluster(KeptCluster):
        async def save_many(self, agents: Any, *, deadline_s: float | None = None) -> Any:
            if "c" in agents:
                raise InvalidRequestError("agent 'c': too many bytes")
            return await super().save_many(agents, deadline_s=deadline_s)

    cluster = PickyCluster()
    load = await Load(cluster, tmp_path, [line_of(agent_id, profile=1) for agent_id in "abcde"]).run()
    assert sorted(cluster.agents) == ["a", "b", "d", "e"]
    assert load.bar.printed == ["line 3: agent 'c': too many bytes"]


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (late("a"), True),
        (ClusterUnavailable("gone"), True),
        (InvalidRequestError("no"), False),
        (SaveRejected(agent_id="a", write_id="00", rejected={"live": "later"}, transient=("live",)), True),
        (SaveRejected(agent_id="a", write_id="00", rejected={"live": "", "old": "no"}, transient=("live",)), False),
        (SaveIncomplete(agent_id="a", write_id="00", saved={}, rejected={}, unknown=("live",)), True),
        (SaveIncomplete(agent_id="a", write_id="00", saved={}, rejected={"a": "CORRUPT: x"}, unknown=("b",)), False),
    ],
)
def test_which_errors_pass(error: DawnchorusError, passing: bool) -> None:
    assert loader.may_pass_later(error) is passing
