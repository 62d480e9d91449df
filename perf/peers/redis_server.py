"""A redis-server of the harness's own, reachable by a socket in a directory alone."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Final

from ..harness.child_process import ChildFailed, check_running, child_process
from .unavailable import PeerUnavailable

__all__ = ["IN_MEMORY", "SYNC_ALWAYS", "redis_server"]

START_SECONDS: Final = 10.0

IN_MEMORY: Final = ("--save", "", "--appendonly", "no")
"""Nothing is written to disk."""

SYNC_ALWAYS: Final = (
    *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
    *("--auto-aof-rewrite-percentage", "0"),  # rewriting its log would cost it time in the middle of a measurement
)
"""Every command is synced before it is answered: what a durable save is compared with."""


@contextlib.asynccontextmanager
async def redis_server(
    directory: Path, program: str, settings: Sequence[str], data: Path | None = None
) -> AsyncGenerator[Path]:
    """Run an empty redis-server; yield the path of its socket in `directory`. `data`: where it writes, if apart.

    Raises:
        PeerUnavailable: the server or its client library is not installed, or does not start.
    """
    server = shutil.which(program)
    if server is None:
        raise PeerUnavailable(f"{program} is not installed (on Debian: apt install redis-server)")
    if importlib.util.find_spec("redis") is None or importlib.util.find_spec("hiredis") is None:
        raise PeerUnavailable(
            "the Python packages redis and hiredis are not installed (pip install 'dawnchorus[perf]')"
        )
    socket_path, log = directory / "redis.sock", directory / "redis.log"
    command = [server, "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"]
    command += ["--dir", str(data or directory), "--databases", "2", "--daemonize", "no", *settings]
    with child_process(command, log=log) as process:
        give_up = time.monotonic() + START_SECONDS
        while not _takes_connections(socket_path):
            try:
                check_running(process, program, log)
            except ChildFailed as error:
                raise PeerUnavailable(str(error)) from error
            if time.monotonic() > give_up:
                raise PeerUnavailable(f"{program} did not answer within {START_SECONDS:.0f} s")
            await asyncio.sleep(0.02)
        yield socket_path


def _takes_connections(socket_path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(socket_path)) == 0
