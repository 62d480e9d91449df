"""`dawnchorus up`: its events, its end by every signal, what it rejects, and commands while a node is stopped."""

import os
import pty
import signal
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from tests.tools.command_line import (
    COMMAND,
    PATIENCE_S,
    Up,
    environment,
    error_of,
    run,
    run_json,
    runs,
    wait_until,
    write_topology,
)

AGENTS = b"\n".join(
    orjson.dumps({"agent_id": f"agent-{number:03d}", "fragments": {"profile": number, "session": {"turns": number}}})
    for number in range(100)
)


def test_events_tell_what_every_node_does(tmp_path: Path) -> None:
    with Up(write_topology(tmp_path)) as up:
        pids = up.pids()
        assert all(map(runs, pids.values()))
        names = {" ".join(psutil.Process(pid).cmdline()).rstrip("\0 ") for pid in pids.values()}
        assert names == {"dawnchorus node identity-1 (test)", "dawnchorus node live-1 (test)"}
    states = [(event["event"], event.get("state")) for event in up.events if event["node"] == "live-1"]
    assert ("node starting", "starting") in states
    assert ("node serving", "serving") in states
    assert states[-1] == ("node stopped", "stopped")
    serving = next(event for event in up.events if event["event"] == "node serving" and event["node"] == "live-1")
    assert serving["shards"] == 3
    assert serving["time"].endswith("+00:00")
    assert serving["level"] == "info"


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT] * 5])
def test_a_signal_ends_every_node_and_then_up(signals: list[signal.Signals], tmp_path: Path) -> None:
    with Up(write_topology(tmp_path)) as up:
        pids = up.pids()
        for number in signals:
            up.process.send_signal(number)
        assert up.process.wait(PATIENCE_S) == 0
        assert not any(map(runs, pids.values()))


def test_a_signal_while_nodes_start_ends_them_too(tmp_path: Path) -> None:
    command = [*COMMAND, "up", "--topology", str(write_topology(tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        first = (orjson.loads(line) for line in process.stdout)
        pid = next(event["pid"] for event in first if event.get("pid"))
        process.send_signal(signal.SIGTERM)
        events = [orjson.loads(line) for line in process.stdout]
        assert process.wait(PATIENCE_S) == 0
    assert not any(runs(one) for one in [pid, *(event["pid"] for event in events if event.get("pid"))])


def test_up_that_is_killed_leaves_no_node_behind(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with Up(topology) as up:
        pids = up.pids()
        run("load", "-", "--topology", topology, stdin=AGENTS)
        up.process.kill()
        wait_until(lambda: not any(map(runs, pids.values())), "the nodes notice")
    with Up(topology):
        assert run("export", "--topology", topology).stdout == AGENTS + b"\n"


def test_restarted_cluster_has_the_same_agents(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    for stdin in (AGENTS, b""):
        with Up(topology):
            run("load", "-", "--topology", topology, stdin=stdin)
            assert run("export", "--topology", topology).stdout == AGENTS + b"\n"


def test_second_up_or_node_is_rejected(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with Up(topology) as up:
        run("load", "-", "--topology", topology, stdin=AGENTS)
        before = run_json("status", "--topology", topology)
        assert "in use" in error_of("up", "--topology", topology)
        assert "in use" in error_of("node", "live-1", "--topology", topology)
        after = run_json("status", "--topology", topology)
        assert after["healthy"]
        assert [node["pid"] for node in after["nodes"]] == [node["pid"] for node in before["nodes"]]
        assert run("export", "--topology", topology).stdout == AGENTS + b"\n"
        assert up.process.poll() is None


def test_a_node_that_dies_is_started_again(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with Up(topology) as up:
        run("load", "-", "--topology", topology, stdin=AGENTS)
        pid = up.pids()["live-1"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: up.pids().get("live-1", pid) != pid, "it is started again")
        assert run("export", "--topology", topology).stdout == AGENTS + b"\n"
    restarting = [event for event in up.events if event.get("state") == "restarting"]
    assert [(event["node"], event["level"], event["restarts"]) for event in restarting] == [("live-1", "warning", 1)]


def test_load_survives_death_of_node(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with Up(topology) as up:
        command = [*COMMAND, "load", "-", "--json", "--topology", str(topology)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as loading:
            assert loading.stdin is not None
            lines = AGENTS.splitlines(keepends=True)
            filler = b'{"agent_id": "filler-%d", "fragments": {"profile": "%s"}}\n'
            for number, line in enumerate(lines):
                loading.stdin.write(line.rstrip() + b"\n" + filler % (number, b"x" * 100_000))
                if number == 50:
                    loading.stdin.flush()
                    os.kill(up.pids()["identity-1"], signal.SIGKILL)
            output, _ = loading.communicate(timeout=PATIENCE_S)
        assert loading.returncode == 0, output
        assert orjson.loads(output)["agents"] == 200


@contextmanager
def stopped(pid: int) -> Generator[None, None, None]:
    """Stop a process while the block runs: it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_commands_name_what_stopped_node_leaves_out(tmp_path: Path) -> None:
    topology = write_topology(tmp_path, deadline_ms=1_000)
    path = tmp_path / "agents.ndjson"
    path.write_text("before")
    options = ("--topology", topology)
    with Up(topology) as up:
        run("load", "-", *options, stdin=AGENTS)
        with stopped(up.pids()["live-1"]):
            status = run_json("status", "--deadline-s", "0.5", *options, code=1)
            assert [node["up"] for node in status["nodes"]] == [True, False]
            ended = run("wake", "agent-007", *options, code=1)
            state = orjson.loads(ended.stdout)
            assert (state["complete"], state["found"]) == (False, True)
            assert state["values"] == {"profile": 7}
            assert state["fallbacks"] == {"session": {"turns": 0}}
            assert state["outcomes"]["profile"] == "OK"
            assert state["outcomes"]["session"] in {"TIMEOUT", "UNAVAILABLE"}
            assert "session could not be read" in ended.stderr.decode()
            failed = run_json(
                "save", "agent-007", "--kind", "profile", "--kind", "session", "--value", "8", "--value", "8",
                "--deadline-s", "1", *options, code=1,
            )  # fmt: skip
            assert failed["saved"] is False
            assert list(failed["versions"]) == ["profile"]
            assert "live-1" in error_of("export", path, *options, code=1)
            assert path.read_text() == "before"
            exporting = subprocess.Popen([*COMMAND, "export", str(path), "-t", str(topology)], env=environment())
            wait_until(lambda: len(list(tmp_path.glob(".*.tmp"))) == 1 or exporting.poll() is not None, "it begins")
            exporting.send_signal(signal.SIGTERM)
            assert exporting.wait(PATIENCE_S) in {1, 143}
        assert path.read_text() == "before"
        assert not list(tmp_path.glob(".*"))
        wait_until(lambda: run_json("wake", "agent-008", *options)["complete"], "it serves again")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data_dir": "file"}, "file"),
        ({"ports": [1, 1]}, "endpoint"),
        ({"data_dir": ""}, "data_dir"),
    ],
)
def test_what_cannot_be_started_is_explained(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    ended = run("up", "--topology", write_topology(tmp_path, **change), code=2)
    assert complaint in ended.stderr.decode()
    assert len(ended.stderr.splitlines()) == 1


def test_port_in_use_ends_start_and_nodes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    topology = write_topology(first)
    other = second / "topology.toml"
    other.write_text(topology.read_text())
    with Up(topology) as up:
        ended = run("up", "--topology", other, code=2)
        assert "in use" in ended.stderr.decode()
        pids = [orjson.loads(line).get("pid", 0) for line in ended.stdout.splitlines()]
        assert not any(runs(pid) for pid in pids if pid)
        assert all(map(runs, up.pids().values()))


def test_on_a_terminal_each_node_has_a_line(tmp_path: Path) -> None:
    controlling, terminal = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(controlling, 1 << 16):
                shown.append(piece)
        except OSError:
            return  # EIO: the last process with the terminal has closed it

    command = [*COMMAND, "up", "--topology", str(write_topology(tmp_path))]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment(TERM="xterm")) as process:
        os.close(terminal)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        wait_until(lambda: b"".join(shown).count(b"serving") >= 3 or process.poll() is not None, "both lines")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    reader.join()
    os.close(controlling)
    text = b"".join(shown)
    assert b"identity-1" in text
    assert b"stopped" in text
    assert b"Traceback" not in text


def test_unread_events_stop_no_cluster(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    command = [*COMMAND, "up", "--topology", str(topology)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        wait_until(lambda: _pid_if_well(topology) is not None, "it serves all the same")
        pid = _pid_if_well(topology)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: _pid_if_well(topology) not in {None, pid}, "a node is started again all the same")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def _pid_if_well(topology: Path) -> int | None:
    """Return the process id of the first node, once all serve."""
    command = [*COMMAND, "status", "--json", "--topology", str(topology)]
    ended = subprocess.run(command, capture_output=True, env=environment(), check=False)
    return None if ended.returncode else int(orjson.loads(ended.stdout)["nodes"][0]["pid"])
