"""The `perf` commands from the command line: their options, and what they print; perf/ has its own tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson
import pytest

from dawnchorus.perf.chaos.script import ScriptError
from dawnchorus.perf.harness.progress import Progress
from dawnchorus.tools.commands import perf_commands
from tests.support.reports import (
    MEMORY_REPORT,
    SAVE_REPORT,
    THREADS_REPORT,
    chaos_report,
    phase_with,
    storm_report,
)
from tests.tools.command_line import error_of, run_json

Perf = Callable[..., str]


class Measurement:
    """A stand-in for a measurement: it notes its options, and returns a report."""

    def __init__(self, report: msgspec.Struct) -> None:
        self._report = report
        self.options: Any = None

    async def __call__(self, options: Any, progress: Progress) -> msgspec.Struct:
        self.options = options
        progress("measure", 1, 1)
        return self._report


@pytest.fixture
def perf(capsys: pytest.CaptureFixture[str]) -> Perf:
    """Run a command in this process; give what it printed."""

    def run_here(command: click.Command, *arguments: object) -> str:
        command.main([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return run_here


def measured(monkeypatch: pytest.MonkeyPatch, name: str, report: msgspec.Struct) -> Measurement:
    """Replace a measurement."""
    measurement = Measurement(report)
    monkeypatch.setattr(perf_commands, name, measurement)
    return measurement


def test_small_storm_prints_one_object() -> None:
    few = ("--agents", "60", "--wake", "20", "--value-bytes", "100", "--singles", "5", "--seconds", "0.05")
    report = run_json("perf", "storm", "--topology", "one-store", *few, "--runs", "1")
    assert (report["agents"], report["wake"], report["value_bytes"], report["runs"]) == (60, 20, 100, 1)
    assert report["wake_many_ms"]["min"] > 0
    assert report["peers"].keys() >= {"redis_mget_ms", "redis_packed_ms", "raw_zmq_ms", "raw_echo_us"}
    assert "wake_many_to_redis_packed" in report["ratios"]


def test_storm_of_given_agents_prints_tables(perf: Perf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storm = measured(monkeypatch, "storm", storm_report(agents=30, wake=20))
    path = tmp_path / "agents.ndjson"
    path.write_bytes(
        b"\n".join(
            orjson.dumps({"agent_id": f"a/{number}", "fragments": {"profile": {"n": number}}}) for number in range(10)
        )
    )
    assert "20 agents woken of 30 asleep" in perf(perf_commands.storm_command, "--file", path, "--copies", 3)
    assert (len(storm.options.workload.ids), storm.options.wake) == (30, 30), "no more than sleep"
    path.write_bytes(path.read_bytes() + b"\nnonsense")
    with pytest.raises(click.UsageError, match="line 11: not JSON"):
        perf(perf_commands.storm_command, "--file", path)


def test_storm_options_that_contradict_are_rejected(perf: Perf, tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="--copies is for --file"):
        perf(perf_commands.storm_command, "--copies", 3)
    with pytest.raises(click.UsageError, match="--file brings its own"):
        (tmp_path / "agents.ndjson").touch()
        perf(perf_commands.storm_command, "--agents", 3, "--file", tmp_path / "agents.ndjson")


def test_more_agents_than_sleep_cannot_be_woken() -> None:
    assert "only 10 sleep" in error_of("perf", "storm", "--agents", "10", "--wake", "20")


def test_memory_prints_object_or_tables(perf: Perf, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = measured(monkeypatch, "memory", MEMORY_REPORT)
    report = orjson.loads(perf(perf_commands.memory_command, "--agents", 50, "--storms", 2, "--json"))
    assert (memory.options.agents, memory.options.storms) == (50, 2)
    assert report["storms"] == 2
    assert len(report["nodes"]) == 2
    assert "2 storms of 20 agents" in perf(perf_commands.memory_command)


def test_save_prints_object_or_tables(perf: Perf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save = measured(monkeypatch, "save", SAVE_REPORT)
    small = ("--agents", 40, "--value-bytes", 50, "--singles", 20, "--seconds", 0.05, "--directory", tmp_path)
    report = orjson.loads(perf(perf_commands.save_command, *small, "--topology", "default", "--json"))
    assert (save.options.savers, save.options.concurrent_s, save.options.directory) == (20, 0.05, tmp_path)
    assert (report["agents"], report["savers"], report["topology"]) == (40, 20, "default")
    text = perf(perf_commands.save_command, *small)
    assert "40 agents saved" in text and "Beside the peers" in text


def test_too_many_savers_are_rejected() -> None:
    assert "need twice as many agents" in error_of("perf", "save", "--agents", "40", "--savers", "30")


def test_threads_prints_object_or_tables(perf: Perf, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = measured(monkeypatch, "threads", THREADS_REPORT)
    report = orjson.loads(perf(perf_commands.threads_command, "--threads", 4, "--seconds", 0.05, "--json"))
    assert (threads.options.threads, threads.options.closed_loop_s) == (4, 0.05)
    assert (report["threads"], report["runs"]) == (4, 1)
    assert report["ratios"].keys() == {"single", "closed_loop"}
    assert "wakes/s of 4 threads" in perf(perf_commands.threads_command)


def test_chaos_prints_object_or_tables(perf: Perf, monkeypatch: pytest.MonkeyPatch) -> None:
    chaos = measured(monkeypatch, "chaos", chaos_report(phase_with("healthy"), phase_with("after")))
    report = orjson.loads(perf(perf_commands.chaos_command, "--phases", "healthy,after", "--rate", 100, "--json"))
    assert (chaos.options.phases, chaos.options.rate) == (("healthy", "after"), 100)
    assert [phase["phase"] for phase in report["phases"]] == ["healthy", "after"]
    assert report["phases"][0]["wakes"]["offered"] > 0
    text = perf(perf_commands.chaos_command)
    assert "1,000 wakes a second" in text and "│ healthy" in text


def test_unknown_chaos_phase_is_rejected(perf: Perf) -> None:
    with pytest.raises(ScriptError, match="there is no phase 'nonsense'"):
        perf(perf_commands.chaos_command, "--phases", "nonsense")


def test_chaos_with_too_few_agents_is_rejected() -> None:
    assert "too few" in error_of("perf", "chaos", "--agents", "100", "--deadline-ms", "10000")
