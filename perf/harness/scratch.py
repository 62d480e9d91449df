"""Temporary folders of the harness: for data, and for sockets, whose paths must be short."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path

from ...wire.protocol.limits import IPC_PATH_BYTES_MAX

__all__ = ["socket_folder", "temporary_folder"]

_SOCKET_NAME_ROOM = 20
"""The longest name of a socket that the harness makes, and some."""


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Generator[Path]:
    """A folder of one's own, gone at the end; `parent` None is the system's place for such."""
    with tempfile.TemporaryDirectory(prefix="dawnchorus-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def socket_folder(folder: Path) -> Generator[Path]:
    """This folder if a socket's path in it is short enough, else another one below /tmp."""
    if len(str(folder).encode()) + _SOCKET_NAME_ROOM <= IPC_PATH_BYTES_MAX:
        yield folder
    else:
        with temporary_folder(Path("/tmp")) as short:
            yield short
