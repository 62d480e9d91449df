"""The command line as processes: `run` one to its end, and `Up`, a cluster that `dawnchorus up` runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import psutil

from dawnchorus.perf.harness.topologies import free_ports

COMMAND = [sys.executable, "-m", "dawnchorus.tools.main"]

PATIENCE_S = 60.0
"""How long anything may take before a test gives up; nothing is measured with it."""

TOPOLOGY = """
[cluster]
name = "{name}"
data_dir = "{data_dir}"
wake_deadline_ms = {deadline_ms}
save_deadline_ms = {deadline_ms}

[stores.identity]
shards = 2
[stores.live]
shards = 3

[fragments.profile]
store = "identity"
required = true
[fragments.session]
store = "live"
fallback = {{ turns = 0 }}
[fragments.context]
store = "live"

[[nodes]]
name = "identity-1"
endpoint = "tcp://127.0.0.1:{ports[0]}"
stores = ["identity"]

[[nodes]]
name = "live-1"
endpoint = "tcp://127.0.0.1:{ports[1]}"
stores = ["live"]
"""


def write_topology(directory: Path, *, deadline_ms: int = 20_000, **changes: Any) -> Path:
    """Write the topology of a small cluster, two stores on two nodes, with free ports; return its path."""
    values: dict[str, Any] = {"name": "test", "data_dir": "data", "ports": free_ports(2), "deadline_ms": deadline_ms}
    path = directory / "topology.toml"
    path.write_text(TOPOLOGY.format(**(values | changes)))
    return path


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without variables that change the commands' behavior."""
    kept = {name: value for name, value in os.environ.items() if name != "DAWNCHORUS_TOPOLOGY"}
    return kept | changes


def run(
    *arguments: str | Path, code: int = 0, stdin: bytes = b"", cwd: Path | None = None, env: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[bytes]:
    """Run `dawnchorus` to its end; its exit code must be `code`, and it must not show a trace."""
    ended = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        cwd=cwd,
        env=environment(**env),
        check=False,
    )
    assert ended.returncode == code, (ended.returncode, ended.stdout[-2000:], ended.stderr[-2000:])
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    return ended


def run_json(*arguments: str | Path, code: int = 0, stdin: bytes = b"") -> Any:
    """Run it with `--json` and return the object that it prints."""
    return orjson.loads(run(*arguments, "--json", code=code, stdin=stdin).stdout)


def error_of(*arguments: str | Path, code: int = 2) -> str:
    """Run it to its failure; return its one message, with nothing on standard output."""
    ended = run(*arguments, code=code)
    assert ended.stdout == b""
    return ended.stderr.decode()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE_S:.0f} s for: {what}"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended but that nobody has reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Up:
    """A cluster under `dawnchorus up`; it serves when the block begins, and has ended when the block ends."""

    def __init__(self, topology: Path) -> None:
        self.topology = topology
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        command = [*COMMAND, "up", "--topology", str(self.topology)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: len(self.pids()) == 2 or self.process.poll() is not None, "both nodes serve")
        assert self.process.poll() is None
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        pids = [event["pid"] for event in self.events if event.get("pid")]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()
        wait_until(lambda: not any(map(runs, pids)), "no node is left")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(orjson.loads(line))

    def pids(self) -> dict[str, int]:
        """Return the process id of each node that serves, as its last event says."""
        latest = {event["node"]: event for event in list(self.events) if "state" in event}
        return {node: event["pid"] for node, event in latest.items() if event["state"] == "serving"}
