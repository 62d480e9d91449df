"""The record that a node leaves behind when corrupt data ends it, and its use at the next start.

LMDB keeps no checksums. On a corrupt page it may stop the process (its assertions call abort(3)) or read beyond the
file's end (SIGBUS), and would do so again at every start. So a node lets Python record such an end (faulthandler);
if the next start finds the record, every shard is read in another process before it is opened, and one that ends its
reader, or that LMDB cannot walk, is named and not served. A start after any other end costs nothing.
"""

from __future__ import annotations

import faulthandler
import logging
import signal
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..fragment_stores.shard_files import ShardFiles
from ..wire.private_files import private_opener

__all__ = ["CRASH_CODES", "CrashRecord", "find_corrupt"]

CRASH_FILE: Final = "crash.txt"

CRASH_CODES: Final = frozenset({-signal.SIGABRT, -signal.SIGBUS, -signal.SIGSEGV})
"""Exit codes of a process that LMDB ended as it read a corrupt page."""

_log = logging.getLogger(__name__)


class CrashRecord:
    """The record, in a node's directory, of the fault that ended it, if any; a context manager while the node runs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CRASH_FILE
        self.suspicious = self._path.exists() and self._path.stat().st_size > 0
        """Whether the node was ended so, and no orderly end with intact data came since."""
        self.damaged = False
        """Whether corrupt data was found: then the record stays, and the next start looks again."""

    def __enter__(self) -> Self:
        self._file = open(self._path, "ab", opener=private_opener)
        faulthandler.enable(self._file, all_threads=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.disable()
        self._file.close()
        if kind is None and not self.damaged:
            self._path.unlink(missing_ok=True)


def find_corrupt(engine: ShardFiles, folders: Iterable[Path]) -> dict[Path, str]:
    """Return the shard directories that cannot be read safely, with the reason; each is read completely in a child."""
    damaged: dict[Path, str] = {}
    with engine.verifier() as verifier:
        for folder in folders:
            if not engine.has_data(folder):
                continue
            found, _ = verifier.verify(folder / engine.data_file)
            broken = [finding.detail for finding in found if finding.where in ("structure", "meta")]
            if broken:
                damaged[folder] = f"{folder}: the data is corrupt: {broken[0]}; restore a backup"
            elif found:
                _log.warning("shard has findings", extra={"path": str(folder), "detail": found[0].detail})
    return damaged
