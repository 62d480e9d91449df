"""Chaos on small clusters of real processes: every phase runs, and nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dawnchorus.perf.chaos import load as load_module
from dawnchorus.perf.chaos.options import ChaosOptions
from dawnchorus.perf.chaos.overload import RATE_MAX
from dawnchorus.perf.chaos.report import PhaseReport
from dawnchorus.perf.chaos.run import chaos
from dawnchorus.perf.chaos.script import ScriptError
from dawnchorus.perf.faults.seclusion import why_not
from dawnchorus.perf.harness.workload import WorkloadError
from tests.support.children import children_left

PATIENCE_S = 60.0
"""How long anything may take before a test gives up; nothing is measured with it."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing count as stuck because the machine is busy."""
    monkeypatch.setattr(load_module, "DRAIN_SECONDS", 20.0)


def small(*phases: str, seconds: float = 1.0) -> ChaosOptions:
    """Return options of a hundred wakes a second of few agents."""
    return ChaosOptions(phases=phases, rate=100, seconds=seconds, agents=100, value_bytes=50, deadline_ms=150)


async def run_small(directory: Path, *phases: str, seconds: float = 1.0) -> list[PhaseReport]:
    """Run these phases; nothing is left behind, and every wake was counted."""
    report = await chaos(small(*phases, seconds=seconds), parent_directory=directory)
    assert not children_left()
    assert not list(directory.iterdir())
    assert [phase.phase for phase in report.phases] == list(phases)
    for phase in report.phases:
        if phase.wakes is not None:
            wakes = phase.wakes
            assert wakes.complete + wakes.degraded + wakes.failed == wakes.offered > 0, phase
            assert not wakes.stuck
            assert phase.memory is not None and 0 < phase.memory.before <= phase.memory.peak
    return report.phases


async def test_a_small_run(tmp_path: Path) -> None:
    healthy, stopped, after = await run_small(tmp_path, "healthy", "stopped", "after")
    assert healthy.wakes is not None and healthy.wakes.complete
    assert stopped.wakes is not None and after.wakes is not None
    assert healthy.wakes.offered + healthy.wakes.unsent == 100
    # A node that is stopped answers nothing, and the others have all required kinds.
    assert not stopped.wakes.complete and stopped.wakes.degraded
    assert stopped.fault == "archive-1 was stopped by SIGSTOP"
    assert after.healing is not None and after.healing.since == "after SIGCONT"


async def test_proxy_delays_replies_or_breaks_connections(tmp_path: Path) -> None:
    late, flapping = await run_small(tmp_path, "late", "flapping", seconds=0.5)
    # The delay of 200 ms is longer than the deadline.
    assert late.wakes is not None and not late.wakes.complete
    assert flapping.wakes is not None and flapping.wakes.offered + flapping.wakes.unsent == 250
    assert "times the connection to archive-1 was broken" in flapping.fault


async def test_node_is_killed_once_and_repeatedly(tmp_path: Path) -> None:
    killed, dying = await run_small(tmp_path, "killed", "dying", seconds=2.0)
    assert killed.healing is not None and killed.healing.since == "after the kill"
    assert "killed 0 times" not in dying.fault


async def test_overload_offers_three_times_the_best_goodput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dawnchorus.perf.chaos.overload._NORMAL_SECONDS", 0.6)
    (phase,) = await run_small(tmp_path, "overload", seconds=0.3)
    found = phase.overload
    assert found is not None and phase.wakes is not None
    assert phase.rate == pytest.approx(max(1.0, min(RATE_MAX, 3 * found.best_per_s)), abs=1.0)
    assert found.goodput_share == pytest.approx(found.goodput_per_s / max(1.0, found.best_per_s), abs=0.01)
    assert phase.healing is not None


async def test_node_is_cut_off_in_own_network(tmp_path: Path) -> None:
    cut_off, after = await run_small(tmp_path, "cut-off", "after")
    if why_not() is not None or cut_off.unproven is not None:
        assert cut_off.unproven and after.unproven == cut_off.unproven
        pytest.skip(f"left unproven: {cut_off.unproven}")
    assert cut_off.wakes is not None and not cut_off.wakes.complete and cut_off.wakes.degraded
    assert after.healing is not None and after.healing.since == "after packets came through again"


async def test_where_packets_cannot_be_dropped_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dawnchorus.perf.chaos.run.why_not", lambda: "it is forbidden")
    phases = await run_small(tmp_path, "cut-off", "after")
    assert [phase.unproven for phase in phases] == ["it is forbidden"] * 2


async def test_options_that_cannot_be_are_rejected() -> None:
    with pytest.raises(ScriptError, match="no phase 'nonsense'"):
        await chaos(small("nonsense"))
    for wrong in (
        ChaosOptions(rate=0),
        ChaosOptions(seconds=0),
        ChaosOptions(deadline_ms=0),
        ChaosOptions(node="nobody"),
        ChaosOptions(agents=199, rate=1_000, deadline_ms=100),
    ):
        with pytest.raises(WorkloadError):
            await chaos(wrong)


COMMAND = [sys.executable, "-m", "dawnchorus.tools.main", "perf", "chaos", "--seconds", "60", "--rate", "50"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("phase", ["stopped", "cut-off"])
def test_chaos_ended_midway_leaves_nothing(tmp_path: Path, how: signal.Signals, phase: str) -> None:
    if phase == "cut-off" and why_not() is not None:
        pytest.skip(str(why_not()))
    if phase == "cut-off" and shutil.which("nsenter") is None:
        pytest.skip("there is no nsenter to look into the network with")
    # Not pytest's directory, whose name is long: what is left in this one is the harness's own.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([*COMMAND, "--phases", phase, "--agents", "100"], env=environment) as harness:
        try:
            root = psutil.Process(harness.pid)
            wait_until(lambda: in_the_middle(root, phase) or harness.poll() is not None)
            if harness.poll() is not None and phase == "cut-off":
                pytest.skip("packets cannot be dropped here")
            family = root.children(recursive=True)
            assert len(family) >= 4
            harness.send_signal(how)
            harness.wait(PATIENCE_S)
        finally:
            harness.kill()
    assert harness.returncode != 0
    wait_until(lambda: not any(is_running(process) for process in family))
    if how != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


def in_the_middle(harness: psutil.Process, phase: str) -> bool:
    """Return whether the fault is in effect: a node is stopped, or packets are dropped in the child's network."""
    for process in harness.children(recursive=True):
        try:
            if phase == "stopped" and process.status() == psutil.STATUS_STOPPED:
                return True
            if phase == "cut-off" and "dawnchorus.perf.chaos.child" in process.cmdline():
                command = ["nsenter", "--net", "--target", str(process.pid), "nft", "list", "tables"]
                tables = subprocess.run(command, capture_output=True, text=True, check=False)
                return "dawnchorus_chaos" in tables.stdout
        except psutil.NoSuchProcess:
            continue  # it has ended meanwhile
    return False


def is_running(process: psutil.Process) -> bool:
    """Return whether a process runs: it exists, and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
