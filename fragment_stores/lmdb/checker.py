"""The verification of files in a process of its own, which a corrupt one may end: that is a finding as well."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from ..shard_files import Finding, Verified

__all__ = ["FileVerifier"]

_COMMAND: Final = [sys.executable, "-P", "-m", "dawnchorus.fragment_stores.lmdb.check_worker"]

FINDINGS_MAX: Final = 1_000
"""Findings of one file that are kept: a completely corrupt file has one for each agent."""


class _Line(msgspec.Struct, frozen=True):
    entries: int = 0
    where: str = ""
    detail: str = ""
    done: Verified | None = None


_line_decoder: Final = msgspec.json.Decoder(_Line)


class FileVerifier:
    """Verifies one LMDB file after the other; its process ends with the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._end()

    def verify(
        self, path: Path, tell: Callable[[int], None] = lambda entries: None
    ) -> tuple[list[Finding], Verified | None]:
        """Return what is wrong with a file that has no writer, and what was seen of it; None if it ended the reader.

        `tell` is called now and then with the number of entries read.
        """
        if self._process is None:
            self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        found: list[Finding] = []
        for line in process.stdout:
            said = _line_decoder.decode(line)
            if said.done is not None:
                return found, said.done
            if said.where:
                found += [Finding(said.where, said.detail)] * (len(found) < FINDINGS_MAX)
            else:
                tell(said.entries)
        code = self._end()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        found.append(Finding("structure", f"reading it ended the reader ({how}): pages are corrupt or missing"))
        return found, None

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None and process.stdout is not None
        code = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        return code
