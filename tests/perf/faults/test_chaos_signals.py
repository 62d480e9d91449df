"""Stopping, throttling and killing of nodes: real processes, which run on afterwards in any case."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest

from dawnchorus.perf.faults.signals import killed, stopped, throttled
from dawnchorus.perf.harness.child_process import ChildFailed

BUSY = [sys.executable, "-I", "-S", "-c", "while True: pass"]


@pytest.fixture
def victim() -> Generator[psutil.Process]:
    """A process that never rests."""
    process = subprocess.Popen(BUSY)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def is_stopped(process: psutil.Process) -> bool:
    """Return whether it is held by SIGSTOP."""
    return process.status() == psutil.STATUS_STOPPED


def holders() -> list[psutil.Process]:
    """Return the processes of this one that hold others."""
    return [child for child in psutil.Process().children() if any("hold.py" in part for part in child.cmdline())]


async def test_stopped_stops_and_lets_go(victim: psutil.Process, tmp_path: Path) -> None:
    async with stopped([victim.pid], tmp_path):
        assert is_stopped(victim)
        used = victim.cpu_times().user
        await asyncio.sleep(0.1)
        assert victim.cpu_times().user == used
    assert not is_stopped(victim)
    assert not holders()


async def test_a_stopped_process_runs_on_after_an_error(victim: psutil.Process, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with stopped([victim.pid], tmp_path):
            raise ZeroDivisionError
    assert not is_stopped(victim) and not holders()


async def test_a_stopped_process_runs_on_after_a_cancellation(victim: psutil.Process, tmp_path: Path) -> None:
    held = asyncio.Event()

    async def hold() -> None:
        async with stopped([victim.pid], tmp_path):
            held.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_stopped(victim) and not holders()


async def test_process_ending_while_stopped_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(BUSY)
    async with stopped([process.pid], tmp_path):
        process.kill()
        process.wait()
    assert not holders()


async def test_a_process_that_is_not_there_is_said(tmp_path: Path) -> None:
    process = subprocess.Popen(BUSY)
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        async with stopped([process.pid], tmp_path):
            pytest.fail("there was nothing to stop")


async def test_dead_holder_is_named_and_victims_run(victim: psutil.Process, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="the process that holds nodes ended"):
        async with stopped([victim.pid], tmp_path):
            (holder,) = holders()
            holder.kill()
            holder.wait()
    assert not is_stopped(victim)


def test_stopped_process_runs_after_harness_is_killed(victim: psutil.Process, tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from dawnchorus.perf.faults.signals import stopped\n"
        "async def main():\n"
        "    async with stopped([int(sys.argv[1])], pathlib.Path(sys.argv[2])):\n"
        "        print('held', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(victim.pid), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None
        assert harness.stdout.readline() == b"held\n"
        assert is_stopped(victim)
        (holder,) = psutil.Process(harness.pid).children()
        harness.kill()
    holder.wait(timeout=20)
    wait_until(lambda: not is_stopped(victim))


async def test_throttled_process_gets_share_of_core(victim: psutil.Process, tmp_path: Path) -> None:
    async with throttled([victim.pid], 0.05, 20.0, tmp_path):
        before, began = sum(victim.cpu_times()[:2]), time.monotonic()
        await asyncio.sleep(3.0)
        share = (sum(victim.cpu_times()[:2]) - before) / (time.monotonic() - began)
    # A twentieth is meant; if the holding process runs late, more is used, and given back later.
    assert share < 0.5
    before = sum(victim.cpu_times()[:2])
    wait_until(lambda: sum(victim.cpu_times()[:2]) > before)
    assert not is_stopped(victim) and not holders()


class Supervisor:
    """A launcher's stand-in that starts a process again as soon as it has died."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.process = subprocess.Popen(BUSY)

    def serving(self) -> int | None:
        """Return the process that runs; one that has died is started again, and found at the next look."""
        code = self.process.poll()
        if code is None:
            return self.process.pid
        self.codes.append(code)
        self.process = subprocess.Popen(BUSY)
        return None


async def test_killed_kills_each_process_once() -> None:
    supervisor = Supervisor()
    try:
        async with killed(supervisor.serving, first_after_s=0.05, every_s=0.05, most=3) as kills:
            while len(kills.at_ns) < 3:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            last = supervisor.process
            await asyncio.sleep(0.2)
        last.wait()
        assert supervisor.process is last, "three times, and not a fourth time"
        assert [*supervisor.codes, last.returncode] == [-signal.SIGKILL] * 3
        gaps_ns = [later - earlier for earlier, later in zip(kills.at_ns, kills.at_ns[1:], strict=False)]
        assert all(gap_ns >= 45_000_000 for gap_ns in gaps_ns)
    finally:
        supervisor.process.kill()
        supervisor.process.wait()


async def test_killed_ends_with_its_block() -> None:
    supervisor = Supervisor()
    try:
        async with killed(supervisor.serving, first_after_s=60, every_s=60, most=1) as kills:
            pass
        assert not kills.at_ns and supervisor.process.poll() is None
        async with killed(lambda: None, first_after_s=0, every_s=1, most=1) as kills:
            await asyncio.sleep(0.05)
        assert not kills.at_ns
    finally:
        supervisor.process.kill()
        supervisor.process.wait()


async def test_what_goes_wrong_with_killing_is_told() -> None:
    def serving() -> int | None:
        raise OSError("nobody knows")

    with pytest.raises(OSError, match="nobody knows"):
        async with killed(serving, first_after_s=0, every_s=1, most=1):
            await asyncio.sleep(0.05)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait, for twenty seconds at most."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
