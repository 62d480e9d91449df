"""Agents in and out of a running cluster by the command line: load, export, wake, save, delete, status."""

import asyncio
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from dawnchorus import Outcome, connect
from dawnchorus.wire.protocol.limits import NESTING_MAX
from tests.tools.command_line import COMMAND, PATIENCE_S, Up, environment, error_of, run, run_json, write_topology

AIRLINE = Path(
    os.environ.get("DAWNCHORUS_AIRLINE", Path(__file__).parents[3].parent / "shared" / "data" / "agents-airline.ndjson")
)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A running cluster; tests keep to agents of their own, whose ids begin with the test's name."""
    with Up(write_topology(tmp_path_factory.mktemp("cluster"))) as running:
        yield running


@pytest.fixture
def topology(up: Up) -> tuple[str, str]:
    """The options that name the cluster to every command."""
    return "--topology", str(up.topology)


def conversations(prefix: str, count: int) -> dict[str, dict[str, Any]]:
    """Return agents as a help desk has them: kilobytes of nested text, and values that JSON alone would lose."""
    numbers = random.Random(prefix)
    agents: dict[str, dict[str, Any]] = {}
    for number in range(count):
        turns = [
            {"role": numbers.choice(["user", "agent"]), "content": "Flug nach Zürich? ✈ " * numbers.randint(1, 80)}
            for _ in range(numbers.randint(1, 30))
        ]
        agents[f"{prefix}/é-{number:03d}"] = {
            "profile": {"name": f"Mia {number}", "largest": (1 << 64) - 1, "least": -(1 << 63), "share": number / 7},
            "session": {"turns": len(turns), "key": {"$bytes": "AAH/"}, "mark": {"$$bytes": "no base64"}},
            "context": {"messages": turns, "flags": [True, None, {"": []}]},
        }
    agents[f"{prefix}/é-000"]["session"] = {"$bytes": "/w=="}
    agents[f"{prefix}/é-001"].pop("context")
    return agents


def ndjson(agents: dict[str, dict[str, Any]]) -> bytes:
    """Return the agents as another program would write them."""
    return b"\n".join(
        orjson.dumps({"agent_id": agent_id, "fragments": fragments}) for agent_id, fragments in agents.items()
    )


def exported(content: bytes, prefix: str) -> dict[str, dict[str, Any]]:
    """Return the test's own agents in an export; all must be in the order of their ids' bytes."""
    lines = [orjson.loads(line) for line in content.splitlines()]
    ids = [line["agent_id"].encode() for line in lines]
    assert ids == sorted(ids)
    return {line["agent_id"]: line["fragments"] for line in lines if line["agent_id"].startswith(prefix)}


def test_what_is_loaded_is_exported(up: Up, topology: tuple[str, str], tmp_path: Path) -> None:
    agents = conversations("loaded", 60)
    path = tmp_path / "agents.ndjson"
    path.write_bytes(ndjson(agents))
    summary = run_json("load", path, "--copies", "3", *topology)
    assert (summary["agents"], summary["fragments"], summary["problem_count"]) == (180, 60 * 9 - 3, 0)
    expected = agents | {f"{agent_id}~{copy}": agents[agent_id] for agent_id in agents for copy in (1, 2)}
    ended = run("export", *topology)
    assert ended.stderr == b""
    assert exported(ended.stdout, "loaded") == expected
    output = tmp_path / "exported.ndjson"
    endpoint = next(event["endpoint"] for event in up.events if "endpoint" in event)
    assert b"180 agents" in run("export", output, "--topology", endpoint).stdout
    assert output.read_bytes() == ended.stdout
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, output.name}
    # The export can be loaded: the cluster is the same afterwards.
    assert run_json("load", output, *topology)["agents"] == 180
    assert run("export", *topology).stdout == ended.stdout


def test_export_loaded_elsewhere_keeps_values_and_expiry(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    text = topology.read_text().replace('store = "live"\nfallback', 'store = "live"\nttl_s = 86400\nfallback')
    assert "ttl_s" in text
    topology.write_text(text)
    nested: Any = "deep"
    for _ in range(NESTING_MAX):
        nested = {2: nested}
    values: dict[str, Any] = {
        "dated": {"at": datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)},
        "keys": {1: "a", "1": b"b", None: {(1, "x"): 2}},
        "numbers": [math.inf, -math.inf, 1.0, 1],
        "nested": nested,
        "tagged": {"$bytes": 1},
    }

    async def fill() -> dict[str, datetime | None]:
        async with connect(topology) as cluster:
            for name, value in values.items():
                await cluster.save(name, {"profile": value, "session": [name]})
            return {name: (await cluster.wake(name)).expires_at("session") for name in values}

    async def look() -> None:
        async with connect(topology) as cluster:
            for name, value in values.items():
                state = await cluster.wake(name)
                assert repr(state["profile"]) == repr(value)
                assert state.expires_at("session") == times[name], "not a moment later"
                assert state.expires_at("profile") is None
            past = await cluster.wake("past")
            assert past.outcome("session") in (Outcome.EXPIRED, Outcome.ABSENT), "absent once it is swept away"
            assert past["context"] == 3

    output = tmp_path / "agents.ndjson"
    with Up(topology):
        times = asyncio.run(fill())
        assert run_json("export", output, "--topology", topology)["agents"] == 5
        assert run_json("wake", "nested", "--topology", topology)["values"]["session"] == ["nested"]
    shutil.rmtree(tmp_path / "data")
    past = (
        b'{"agent_id": "past", "fragments": {"profile": 1, "session": 2, "context": 3}, "expires": {"session": "%s"}}\n'
    )
    with output.open("ab") as file:
        file.write(past % b"2020-01-02T03:04:05Z")
    with Up(topology):
        assert run_json("load", output, "--topology", topology)["agents"] == 6
        asyncio.run(look())


@pytest.mark.skipif(not AIRLINE.exists(), reason="no airline agents here (DAWNCHORUS_AIRLINE)")
def test_airline_agents_are_exported_as_loaded(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    kinds = '[fragments.preference]\nstore = "identity"\n[fragments.history]\nstore = "live"\n'
    topology.write_text(topology.read_text() + kinds)
    expected: dict[str, dict[str, Any]] = {}
    for line in AIRLINE.read_bytes().splitlines():
        agent = orjson.loads(line)
        for copy in range(50):
            expected[f"{agent['agent_id']}~{copy}" if copy else agent["agent_id"]] = agent["fragments"]
    with Up(topology):
        assert run_json("load", AIRLINE, "--copies", "50", "--topology", topology)["agents"] == len(expected)
        before = run("export", "--topology", topology).stdout
    assert exported(before, "") == expected
    with Up(topology):
        assert run("export", "--topology", topology).stdout == before


def test_broken_lines_are_named_others_loaded(topology: tuple[str, str]) -> None:
    lines = [
        b'{"agent_id": "broken/1", "fragments": {"profile": 1}}',
        b'{"agent_id": "broken/2", "fragments": {"profile": 1}',
        b'{"agent_id": "broken/3", "fragments": {"profile": 1, "nonsense": 2}}',
        b"",
        b'{"agent_id": "", "fragments": {"profile": 1}}',
        orjson.dumps({"agent_id": "x" * 257, "fragments": {"profile": 1}}),
        orjson.dumps({"agent_id": "broken/4", "fragments": {"profile": "x" * (1 << 20)}}),
        b'{"agent_id": "broken/5", "fragments": {"profile": 1}}',
    ]
    ended = run("load", "-", *topology, code=1, stdin=b"\n".join(lines))
    messages = ended.stderr.decode().splitlines()
    assert [message.partition(":")[0] for message in messages] == ["line 2", "line 3", "line 5", "line 6", "line 7"]
    assert b"loaded 2 agents" in ended.stdout
    summary = run_json("load", "-", *topology, code=1, stdin=b"\n".join(lines))
    assert (summary["agents"], summary["problem_count"], summary["stopped"]) == (2, 5, None)
    assert [problem["line"] for problem in summary["problems"]] == [2, 3, 5, 6, 7]
    assert set(exported(run("export", *topology).stdout, "broken")) == {"broken/1", "broken/5"}


def test_oversized_image_is_named_others_loaded(topology: tuple[str, str]) -> None:
    megabyte = "x" * ((1 << 20) - 100)
    agents: dict[str, dict[str, Any]] = {
        "image/1": {"profile": 1},
        "image/2": {"profile": 1, "session": megabyte, "context": megabyte},
        "image/3": {"profile": 1},
    }
    assert run_json("load", "-", *topology, stdin=ndjson(agents))["agents"] == 3
    whole = "x" * ((1 << 20) - 5)  # two of the largest values leave no room for the rest of the image
    agents["image/2"] = {"profile": 2, "session": whole, "context": whole}
    summary = run_json("load", "-", *topology, code=1, stdin=ndjson(agents))
    assert [(problem["line"], problem["agent_id"]) for problem in summary["problems"]] == [(2, "image/2")]
    assert "the limit is 2,097,152" in summary["problems"][0]["problem"]
    assert summary["agents"] == 2


def test_a_reader_that_has_enough_is_no_error(topology: tuple[str, str]) -> None:
    agents = conversations("enough", 200)
    run("load", "-", *topology, stdin=ndjson(agents))
    exporting = subprocess.Popen(
        [*COMMAND, "export", *topology], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert exporting.stdout is not None
    assert exporting.stdout.readline().startswith(b'{"agent_id":')
    exporting.stdout.close()
    _, errors = exporting.communicate(timeout=PATIENCE_S)
    assert errors == b""


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_load_says_how_much_was_saved(
    number: signal.Signals, code: int, topology: tuple[str, str], as_json: bool
) -> None:
    loading = subprocess.Popen(
        [*COMMAND, "load", "-", *topology, *(["--json"] if as_json else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert loading.stdin is not None
    loading.stdin.write(ndjson(conversations(f"cut/{code}/{as_json}", 3)) + b"\n")
    # More than a pipe holds: when it has been written, the command reads and its handlers are in place.
    loading.stdin.write(b"\n" * (1 << 20))
    loading.stdin.flush()
    time.sleep(0.2)
    loading.send_signal(number)
    assert loading.wait(PATIENCE_S) == code  # Its standard input is still open.
    output, errors = loading.communicate()
    assert errors.strip() == b""
    if as_json:
        summary = orjson.loads(output)
        assert summary["stopped"] == "interrupted"
        assert summary["agents"] + summary["unknown"] in (0, 3), "three lines are no full batch: sent at the end only"
    else:
        assert re.match(rb"loaded 0 agents, .*; stopped after line [0-9,]+\n", output)


def test_wake_shows_outcomes_versions_and_values(topology: tuple[str, str]) -> None:
    run("load", "-", *topology, stdin=b'{"agent_id": "wake/\xc3\xbc", "fragments": {"profile": {"$bytes": "AAE="}}}')
    ended = run("wake", "wake/ü", *topology)
    assert ended.stderr == b""
    state = orjson.loads(ended.stdout)
    version = state["versions"].pop("profile")
    assert isinstance(version, str)
    assert int(version) > 1 << 40
    assert state == {
        "agent_id": "wake/ü",
        "found": True,
        "complete": True,
        "outcomes": {"profile": "OK", "session": "ABSENT", "context": "ABSENT"},
        "versions": {"session": "0", "context": "0"},
        "values": {"profile": {"$bytes": "AAE="}},
        "fallbacks": {},
    }
    only = run_json("wake", "wake/ü", "--kinds", "session,profile", *topology)
    assert only["outcomes"] == {"session": "ABSENT", "profile": "OK"}


def test_agents_that_are_not_there_are_said(topology: tuple[str, str]) -> None:
    run("save", "there", "--kind", "profile", "--value", "1", *topology)
    ended = run("wake", "nobody", "there", "--json", *topology, code=1)
    lines = [orjson.loads(line) for line in ended.stdout.splitlines()]
    assert [(line["agent_id"], line["found"]) for line in lines] == [("nobody", False), ("there", True)]
    assert ended.stderr.decode().startswith("agent 'nobody' was not found: none of its required kinds is there")


def test_saved_agent_is_woken_until_deleted(topology: tuple[str, str], tmp_path: Path) -> None:
    context, key = tmp_path / "context.json", tmp_path / "key.bin"
    context.write_text('{"topic": "flights"}')
    key.write_bytes(bytes(range(256)))
    arguments = ["--kind", "profile", "--value", "18446744073709551615", "--kind", "context", "--value", f"@{context}"]
    saved = run_json("save", "saved", *arguments, *topology)
    assert saved["saved"]
    assert list(saved["versions"]) == ["profile", "context"]
    text = run("save", "saved", "--kind", "session", "--bytes-file", key, *topology).stdout.decode().split()
    assert text[0] == "session"
    state = run_json("wake", "saved", *topology)
    assert state["values"]["profile"] == (1 << 64) - 1
    assert state["values"]["context"] == {"topic": "flights"}
    assert state["versions"] == saved["versions"] | {"session": text[1]}
    piped = run("save", "saved", "--kind", "session", "--value", "@-", *topology, stdin=b'{"turns": 3}')
    assert int(piped.stdout.split()[1]) > int(text[1])
    assert run_json("delete", "saved", "--kind", "session", *topology)["deleted"]
    assert run_json("wake", "saved", *topology)["outcomes"]["session"] == "ABSENT"
    assert run_json("delete", "saved", *topology)["deleted"]
    assert not run_json("delete", "saved", *topology)["deleted"]
    assert run_json("wake", "saved", *topology, code=1)["found"] is False


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["save", "a", "--kind", "nonsense", "--value", "1"], "there is no kind 'nonsense'"),
        (["save", "", "--kind", "profile", "--value", "1"], "1 to 256 bytes"),
        (["save", "é" * 129, "--kind", "profile", "--value", "1"], "1 to 256 bytes"),
        (["wake", "a", "--kinds", "nonsense"], "there is no kind 'nonsense'"),
        (["wake", "there", ""], "1 to 256 bytes"),
        (["delete", "a", "--kind", "nonsense"], "there is no kind 'nonsense'"),
    ],
)
def test_what_the_cluster_cannot_have_is_rejected(
    arguments: list[str], complaint: str, topology: tuple[str, str]
) -> None:
    assert complaint in error_of(*arguments, *topology)


def test_a_value_over_the_limit_is_rejected(topology: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes((1 << 20) + 1))
    assert "1,048,577 bytes" in error_of("save", "a", "--kind", "profile", "--bytes-file", path, *topology)


def test_status_shows_every_node(up: Up, topology: tuple[str, str]) -> None:
    run("save", "status", "--kind", "profile", "--value", "1", *topology)
    status = run_json("status", *topology)
    assert status["healthy"]
    nodes = {node["node"]: node for node in status["nodes"]}
    assert {name: node["pid"] for name, node in nodes.items()} == up.pids()
    assert [len(node["shards"]) for node in status["nodes"]] == [2, 3]
    assert nodes["identity-1"]["agents"] > 0
    assert all(isinstance(shard["version"], str) for shard in nodes["live-1"]["shards"])
    assert nodes["identity-1"]["counters"]["writes"] > 0
    table = run("status", *topology).stdout.decode()
    for node in status["nodes"]:
        assert f" {node['node']} " in table
        assert node["endpoint"] in table
        assert str(node["pid"]) in table
