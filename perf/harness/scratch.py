"""Temporary directories of the harness: for data, and for sockets, whose paths must be short."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path

from ...wire.protocol.limits import IPC_PATH_BYTES_MAX

__all__ = ["socket_directory", "temporary_directory"]

_SOCKET_NAME_ROOM = 20
"""The longest name of a socket that the harness makes, and some."""


@contextlib.contextmanager
def temporary_directory(parent: Path | None = None) -> Generator[Path]:
    """Make a directory that is gone at the end; with no `parent` in the system's place for such."""
    with tempfile.TemporaryDirectory(prefix="dawnchorus-", dir=parent, ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@contextlib.contextmanager
def socket_directory(directory: Path) -> Generator[Path]:
    """Give this directory if a socket's path in it is short enough, else another one below /tmp."""
    if len(str(directory).encode()) + _SOCKET_NAME_ROOM <= IPC_PATH_BYTES_MAX:
        yield directory
    else:
        with temporary_directory(Path("/tmp")) as short:
            yield short
