"""Tests of the real world, and the guard that keeps all others away from it.

Every test is a unit test unless it says otherwise: it runs in virtual time (`tests.support.virtual_time`), and opening
a socket, starting a process or a thread, or sleeping is an error. Tests that need one of those are listed here by file,
or marked `@pytest.mark.real` one by one. `make unit` leaves them out.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from multiprocessing.process import BaseProcess
from typing import Any, Final
from unittest import mock

import uvloop
import zmq

__all__ = ["REAL_FILES", "REAL_FIXTURES", "UNIT_FILES", "RealWorldError", "is_real", "kept_away"]

REAL_FILES: Final = (
    "fragment_stores/lmdb/*",
    "nodes/test_bounded_output.py",
    "nodes/test_crash_record.py",
    "nodes/test_group_commit.py",
    "nodes/test_launcher.py",
    "nodes/test_many_clients.py",
    "nodes/test_node.py",
    "nodes/test_node_floods.py",
    "nodes/test_node_process.py",
    "nodes/test_read_path.py",
    "nodes/test_runtime_directory.py",
    "nodes/test_shard_backup.py",
    "nodes/test_shard_table.py",
    "nodes/test_worker_threads.py",
    "perf/*",
    "router/client/test_home.py",
    "router/client/test_loop_thread.py",
    "router/client/test_sync_cluster.py",
    "test_*.py",
    "tools/*",
    "wire/cluster/test_control_store.py",
    "wire/cluster/test_file_control_store.py",
    "wire/cluster/test_restored_placement.py",
    "wire/test_descriptors.py",
    "wire/transport/test_channel.py",
    "wire/transport/test_loop_calls.py",
    "wire/transport/test_server_socket.py",
    "wire/transport/test_sockets.py",
    "*/test_acceptance.py",
)
"""Patterns of files below tests/ whose tests need sockets, processes, threads or time that passes by itself."""

UNIT_FILES: Final = (
    "perf/chaos/test_chaos_pure.py",
    "perf/chaos/test_chaos_report.py",
    "perf/harness/test_workload.py",
    "perf/saves/test_report.py",
    "perf/saves/test_savers.py",
    "perf/storm/test_report.py",
    "tools/commands/test_status_command.py",
    "tools/transfer/test_json_values.py",
    "tools/transfer/test_ndjson.py",
)
"""Files among those whose tests are unit tests all the same."""

REAL_FIXTURES: Final = frozenset({"running_cluster", "serving"})
"""Fixtures that are nodes with sockets: each test that asks for one is real."""

_EVENTS: Final = {
    "socket.__new__": "opens a socket",
    "subprocess.Popen": "starts a process",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.exec": "starts a process",
}
"""Audit events (docs.python.org/3/library/audit_events.html), and the action of a test that raises one."""

_CALLS: Final[tuple[tuple[object, str, str], ...]] = (
    (zmq, "Context", "opens a socket"),
    (asyncio.events, "new_event_loop", "runs an event loop in real time"),
    (uvloop, "new_event_loop", "runs an event loop in real time"),
    (threading.Thread, "start", "starts a thread"),
    (BaseProcess, "start", "starts a process"),
    (time, "sleep", "sleeps"),
)
"""Functions that raise no audit event in some supported Python."""


class RealWorldError(AssertionError):
    """A unit test did something that only tests of the real world may do."""

    def __init__(self, does: str) -> None:
        super().__init__(
            f"this unit test {does}; if it has to, list its file in tests/support/real.py or mark it with"
            " @pytest.mark.real: then `make unit` leaves it out"
        )


_away = False


def _audit(event: str, _arguments: tuple[Any, ...]) -> None:
    if _away and event in _EVENTS:
        raise RealWorldError(_EVENTS[event])


sys.addaudithook(_audit)


def _raising(does: str) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise RealWorldError(does)

    return fail


@contextmanager
def kept_away() -> Generator[None]:
    """Raise RealWorldError at anything real meanwhile."""
    global _away
    with ExitStack() as patches:
        for owner, name, does in _CALLS:
            patches.enter_context(mock.patch.object(owner, name, _raising(does)))
        _away = True
        try:
            yield
        finally:
            _away = False


def is_real(path: str, fixtures: Iterable[str]) -> bool:
    """Return whether a test is listed, by its file, named from tests/ on, or by a fixture that it asks for."""
    listed = path not in UNIT_FILES and any(fnmatch(path, pattern) for pattern in REAL_FILES)
    return listed or not REAL_FIXTURES.isdisjoint(fixtures)
