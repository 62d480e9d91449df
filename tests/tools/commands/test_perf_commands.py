"""The `perf` commands from the command line: that they run, and what they print; perf/ has its own tests."""

from pathlib import Path

import msgspec
import orjson
import pytest

from dawnchorus.perf.harness.progress import Progress
from dawnchorus.perf.harness.scratch import temporary_directory
from dawnchorus.perf.saves.report import SaveReport
from dawnchorus.perf.saves.save import SaveOptions
from dawnchorus.tools.commands.perf_commands import save_command
from tests.tools.command_line import error_of, run, run_json

SMALL = ("--topology", "one-store", "--wake", "20")


def test_a_storm_prints_one_object(tmp_path: Path) -> None:
    report = run_json("perf", "storm", *SMALL, "--agents", "60", "--runs", "1", "--value-bytes", "100")
    assert (report["agents"], report["wake"], report["value_bytes"], report["runs"]) == (60, 20, 100, 1)
    assert report["wake_many_ms"]["min"] > 0
    assert report["peers"].keys() >= {"redis_mget_ms", "redis_packed_ms", "raw_zmq_ms", "raw_echo_us"}
    assert "wake_many_to_redis_packed" in report["ratios"]


def test_a_storm_of_agents_of_ones_own_prints_tables(tmp_path: Path) -> None:
    path = tmp_path / "agents.ndjson"
    path.write_bytes(
        b"\n".join(
            orjson.dumps({"agent_id": f"a/{number}", "fragments": {"profile": {"n": number}}}) for number in range(10)
        )
    )
    text = run("perf", "storm", *SMALL, "--file", path, "--copies", "3", "--runs", "1").stdout.decode()
    assert "20 agents woken of 30 asleep" in text
    path.write_bytes(path.read_bytes() + b"\nnonsense")
    assert "line 11: not JSON" in error_of("perf", "storm", *SMALL, "--file", path)


def test_more_agents_than_sleep_cannot_be_woken() -> None:
    assert "only 10 sleep" in error_of("perf", "storm", *SMALL, "--agents", "10")


def test_memory_prints_one_object() -> None:
    report = run_json("perf", "memory", *SMALL, "--agents", "50", "--storms", "2", "--value-bytes", "100")
    assert report["storms"] == 2
    assert len(report["nodes"]) == 2


def test_save_prints_one_object_or_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_directory() as directory:  # not pytest's, which lets PostgreSQL's user not pass through
        directory.chmod(0o711)
        few = ("--agents", "40", "--value-bytes", "50", "--runs", "1", "--singles", "20", "--seconds", "0.05")
        small = (*few, "--directory", directory)
        report = run_json("perf", "save", *small, "--topology", "default")
        assert (report["agents"], report["savers"], report["topology"]) == (40, 20, "default")
        assert report["ratios"]["concurrent_to_fdatasync"] > 0

        async def measured_before(_options: SaveOptions, _progress: Progress) -> SaveReport:
            return msgspec.convert(report, SaveReport)

        monkeypatch.setattr("dawnchorus.tools.commands.perf_commands.save", measured_before)
        save_command.main(list(map(str, small)), standalone_mode=False)
        text = capsys.readouterr().out
        assert "40 agents saved" in text and "Beside the peers" in text
        assert "need twice as many agents" in error_of("perf", "save", *small, "--savers", "30")


def test_threads_prints_one_object_or_tables() -> None:
    small = ("--threads", "4", "--runs", "1", "--seconds", "0.05", "--topology", "one-store")
    report = run_json("perf", "threads", *small)
    assert (report["threads"], report["runs"]) == (4, 1)
    assert report["ratios"].keys() == {"single", "closed_loop"}
    assert report["blocking_closed_loop_per_s"] > 0
    assert "wakes/s of 4 threads" in run("perf", "threads", *small).stdout.decode()


def test_chaos_prints_one_object_or_tables() -> None:
    small = ("--seconds", "0.3", "--agents", "100", "--rate", "100")
    report = run_json("perf", "chaos", *small, "--phases", "healthy,after")
    assert [phase["phase"] for phase in report["phases"]] == ["healthy", "after"]
    assert report["phases"][0]["wakes"]["offered"] > 0
    text = run("perf", "chaos", *small, "--phases", "healthy").stdout.decode()
    assert "100 wakes a second" in text and "│ healthy" in text
    assert "there is no phase 'nonsense'" in error_of("perf", "chaos", *small, "--phases", "nonsense")
    assert "too few" in error_of("perf", "chaos", *small, "--deadline-ms", "10000")
