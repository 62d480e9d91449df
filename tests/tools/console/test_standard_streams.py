"""Standard streams that are closed, full, stuck or abandoned; and signals that are to be ignored."""

import asyncio
import contextlib
import os
import pty
import shlex
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import orjson
import psutil
import pytest

from dawnchorus import connect
from tests.tools.command_line import COMMAND, PATIENCE_S, Up, environment, run, runs, wait_until, write_topology


@contextmanager
def started(
    line: str, topology: Path, stdout: int | None = None, stderr: int | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Run a line of shell in which `$D` is the command, while the block runs."""
    changed = environment(D=shlex.join(COMMAND), DAWNCHORUS_TOPOLOGY=str(topology), TERM="xterm")
    with subprocess.Popen(["sh", "-c", line], env=changed, stdout=stdout, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def shell(line: str, topology: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which `$D` is the command; no trace is shown, whatever its streams are."""
    ended = subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        timeout=PATIENCE_S,
        env=environment(D=shlex.join(COMMAND), DAWNCHORUS_TOPOLOGY=str(topology)),
        check=False,
    )
    assert b"Traceback" not in ended.stderr and b"Exception ignored" not in ended.stderr, ended.stderr.decode()
    return ended


@contextmanager
def full_pipe() -> Generator[tuple[int, int], None, None]:
    """Yield a full pipe; it holds zeros."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(4_096))
        os.set_blocking(writing, True)
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def save(topology: Path, value: int) -> None:
    """Save an agent, as soon as all nodes serve."""

    async def save_agent() -> None:
        async with connect(topology, connect_deadline_s=PATIENCE_S) as cluster:
            await cluster.save("a", {"profile": value, "session": {"turns": value}}, deadline_s=PATIENCE_S)

    asyncio.run(save_agent())


def nodes_of(up: subprocess.Popen[bytes]) -> list[int]:
    return [child.pid for child in psutil.Process(up.pid).children() if child.status() != psutil.STATUS_ZOMBIE]


def require_supervised(up: subprocess.Popen[bytes], topology: Path) -> None:
    """Assert that saves are accepted, a dead node is started again, and a signal ends everything."""
    save(topology, 1)
    killed, kept = nodes_of(up)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(nodes_of(up)) == 2 and killed not in nodes_of(up), "the node is started again")
    save(topology, 2)
    assert kept in nodes_of(up)
    up.send_signal(signal.SIGTERM)
    assert up.wait(PATIENCE_S) == 0


# --- streams that nobody reads ---


def test_up_with_unread_output_supervises_and_ends(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with full_pipe() as (reading, writing):
        with started("exec $D up", topology, stdout=writing) as up:
            require_supervised(up, topology)
        assert os.read(reading, 1 << 20).strip(b"\0") == b"", "nothing of it had room"


def test_up_with_stopped_terminal_supervises_and_ends(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    controlling, terminal = pty.openpty()
    try:
        with started("exec $D up", topology, stdout=terminal, stderr=terminal) as up:
            shown = b""
            while shown.count(b"serving") < 3:
                shown += os.read(controlling, 1 << 16)
            os.write(controlling, b"\x13")  # Ctrl-S
            require_supervised(up, topology)
    finally:
        os.close(terminal)
        os.close(controlling)


def test_node_with_unread_log_serves_and_ends(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with full_pipe() as (_, writing), contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(started(f"exec $D node {name}", topology, stdout=writing, stderr=writing))
            for name in ("identity-1", "live-1")
        ]
        save(topology, 1)
        for node in nodes:
            node.send_signal(signal.SIGTERM)
        assert [node.wait(PATIENCE_S) for node in nodes] == [0, 0]


def test_up_without_standard_streams_serves(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with started("exec $D up <&- >&- 2>&-", topology) as up:
        require_supervised(up, topology)
    run("verify", "--topology", topology)


# --- closed and full ---


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    topology = write_topology(tmp_path_factory.mktemp("streams"))
    with Up(topology):
        save(topology, 1)
        yield topology


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    path = tmp_path / "agents"
    path.write_bytes(b'{"agent_id": "b", "fragments": {"profile": 1}}\n')
    return path


COMMANDS = ["status --json", "wake a", "load FILE", "export"]


@pytest.mark.parametrize("command", COMMANDS)
def test_output_without_room_is_one_line_error(command: str, served: Path, agents: Path) -> None:
    line = f"$D {command.replace('FILE', str(agents))}"
    full = shell(f"{line} > /dev/full", served)
    assert full.returncode == 1
    assert full.stderr.count(b"\n") == 1 and b"No space left on device" in full.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_closed_output_leaves_the_exit_code(command: str, served: Path, agents: Path) -> None:
    closed = shell(f"$D {command.replace('FILE', str(agents))} >&-", served)
    if command == "export":
        assert closed.returncode == 2 and b"standard output is closed" in closed.stderr
    else:
        assert (closed.returncode, closed.stderr) == (0, b"")


def test_unwritable_errors_leave_the_exit_code(served: Path, agents: Path) -> None:
    assert shell("$D wake nobody >&- 2>&-", served).returncode == 1
    assert shell("$D wake >/dev/full 2>/dev/full", served).returncode == 2
    assert shell("$D status -t nowhere.toml <&- >&- 2>&-", served).returncode == 2
    problems = shell(f"printf 'no json\\n' | cat - {agents} | $D load - --json 2>/dev/full", served)
    assert problems.returncode == 1
    assert orjson.loads(problems.stdout)["agents"] == 1, "the rest is loaded all the same"


def test_closed_input_is_not_empty_input(served: Path) -> None:
    ended = shell("$D load - <&-", served)
    assert ended.returncode == 2 and b"standard input is closed" in ended.stderr


def test_gone_reader_ends_command_silently(served: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for command in ("export", "wake a", "status"):
        ended = subprocess.run(
            [*COMMAND, *command.split(), "-t", str(served)], stdout=writing, stderr=subprocess.PIPE, check=False
        )
        assert (ended.returncode, ended.stderr) == (1, b"")
    os.close(writing)


# --- signals ---


def test_signals_ignored_at_start_stay_ignored(tmp_path: Path) -> None:
    topology = write_topology(tmp_path)
    with started("trap '' HUP INT; exec $D up >/dev/null", topology) as up:
        save(topology, 1)
        nodes = nodes_of(up)
        for number in (signal.SIGHUP, signal.SIGINT) * 3:
            up.send_signal(number)
        save(topology, 2)
        assert nodes_of(up) == nodes
        up.send_signal(signal.SIGTERM)
        assert up.wait(PATIENCE_S) == 0
        assert not any(map(runs, nodes))


def test_gone_terminal_ends_node_in_order(tmp_path: Path) -> None:
    with started(
        "exec $D node live-1", write_topology(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as node:
        assert node.stdout is not None and b"serving" in node.stdout.readline()
        node.send_signal(signal.SIGHUP)
        _, log = node.communicate(timeout=PATIENCE_S)
        assert node.returncode == 0
        assert orjson.loads(log.splitlines()[-1])["event"] == "stopped"
