"""Children of the harness: real processes that end with it in any case."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dawnchorus.perf.harness.child_process import ChildFailed, anonymous_bytes, check_running, child_process, stop
from dawnchorus.perf.harness.scratch import socket_directory, temporary_directory

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


def test_a_child_ends_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), child_process(SLEEP, log=tmp_path / "log") as process:
        assert process.poll() is None
        raise ZeroDivisionError
    assert process.poll() is not None


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dawnchorus.perf.harness.child_process.STOP_SECONDS", 0.2)
    log = tmp_path / "log"
    with child_process(STUBBORN, log=log) as process:
        wait_until(lambda: log.read_bytes() == b"up\n")
        stop(process)
        assert process.returncode == -signal.SIGKILL


def test_a_child_ends_when_the_harness_is_killed(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from dawnchorus.perf.harness.child_process import child_process\n"
        f"with child_process({SLEEP!r}, log=pathlib.Path(sys.argv[1])) as child:\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    harness = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE)
    with harness:
        assert harness.stdout is not None
        child = psutil.Process(int(harness.stdout.readline()))
        harness.kill()
    child.wait(timeout=10)


def test_output_of_failed_child_is_in_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with child_process([sys.executable, "-c", "raise SystemExit('no such port')"], log=log) as process:
        process.wait()
        with pytest.raises(ChildFailed, match=r"the server ended with code 1: no such port"):
            check_running(process, "the server", log)


def test_anonymous_memory_of_a_process() -> None:
    before = anonymous_bytes(os.getpid())
    block = bytearray(os.urandom(1 << 20) * 64)
    assert anonymous_bytes(os.getpid()) - before > 60 << 20
    del block


def test_sockets_go_to_a_short_directory(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    with temporary_directory() as directory, socket_directory(directory) as same:
        assert same == directory
    with socket_directory(long) as other:
        assert len(str(other)) < 80
    assert not other.exists() and not directory.exists()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait, for ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
