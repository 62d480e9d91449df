"""The directory of a node's Unix socket, which only its user can enter.

$XDG_RUNTIME_DIR, a directory for temporary files, or, if the whole root is read-only, the data directory itself;
clients learn the path from the Welcome. If none is usable a node has no such socket, and says why in its log: clients
on its host use TCP then.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..wire.protocol.limits import IPC_PATH_BYTES_MAX

__all__ = ["ipc_endpoint", "runtime_directories"]

_TEMPORARY: Final = ("/tmp", "/var/tmp")

_log = logging.getLogger(__name__)


def runtime_directories(data_dir: str | os.PathLike[str], environment: Mapping[str, str]) -> list[Path]:
    """Return the candidate directories, the best first; they need not exist."""
    bases = [base for base in (environment.get("TMPDIR", ""), *_TEMPORARY) if base.startswith("/")]
    found = [Path(base) / f"dawnchorus-{os.getuid()}" for base in bases]
    if base := environment.get("XDG_RUNTIME_DIR"):
        found.insert(0, Path(base) / "dawnchorus")
    return [*found, Path(data_dir).absolute() / ".sockets"]


def ipc_endpoint(file: str, data_dir: str | os.PathLike[str]) -> str:
    """Return the endpoint of a socket of this name, "" if there is no place for one, which is logged."""
    reasons: list[str] = []
    for directory in runtime_directories(data_dir, os.environ):
        reason = _make(directory) or _too_long(directory / file)
        if not reason:
            if reasons:
                _log.info("unix socket is elsewhere", extra={"path": str(directory), "detail": "; ".join(reasons)})
            return f"ipc://{directory / file}"
        reasons.append(f"{directory}: {reason}")
    _log.warning("no unix socket: clients use TCP", extra={"detail": "; ".join(reasons)})
    return ""


def _make(directory: Path) -> str:
    """Make a directory for this user alone, if it is not there; return why it is unusable, "" if it is usable."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.lstat()
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        return "it is not this user's alone"
    # An existing one may be on a file system that is read-only by now; access(2) knows that too.
    return "" if os.access(directory, os.W_OK | os.X_OK) else "it cannot be written"


def _too_long(path: Path) -> str:
    size = len(os.fsencode(path))
    return f"a path of {size} bytes is too long for a socket" if size > IPC_PATH_BYTES_MAX else ""
