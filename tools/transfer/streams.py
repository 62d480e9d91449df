"""Files and pipes as `load` and `export` need them: lines in, bounded; a file that appears whole, or not at all.

Everything here blocks and is called through `running.in_thread`. Descriptors are used directly: a buffered file object
holds a lock while it waits, and a process that is asked to end cannot while a thread waits with that lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import stat
from pathlib import Path
from typing import Final, NamedTuple

from ...wire.durable_files import sync_directory
from ..console.standard_streams import require_usable

__all__ = ["InputLine", "LineReader", "OutputFile"]

_READ_BYTES: Final = 1 << 20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
STANDARD_INPUT: Final = 0
STANDARD_OUTPUT: Final = 1


class InputLine(NamedTuple):
    """A line without its end; `text` is None where it was longer than permitted and was passed over."""

    number: int
    text: bytes | None


class LineReader:
    """The lines of a file or of standard input (`-`), a piece at a time, in bounded memory."""

    def __init__(self, path: str, line_bytes_max: int) -> None:
        """Open the file; raises OSError."""
        if path == "-":
            require_usable(STANDARD_INPUT)
        self.descriptor = STANDARD_INPUT if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._line_bytes_max = line_bytes_max
        self._parts: list[bytes] = []  # The beginning of a line whose end has not been read yet.
        self._parts_bytes = 0
        self._skipping = False  # That beginning is too long already and is not kept.
        self._number = 0
        self._ended = False
        self.bytes_read = 0
        status = os.fstat(self.descriptor)
        self.bytes_total: int | None = status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self) -> list[InputLine] | None:
        """Return the next lines, at least as soon as they have come (perhaps none yet); None at the end."""
        if self._ended:
            return None
        piece = self._read_piece()
        if not piece:
            self._ended = True
            if self.descriptor != STANDARD_INPUT:
                os.close(self.descriptor)
            return [self._end_line(b"")] if self._parts or self._skipping else None
        self.bytes_read += len(piece)
        *ends, rest = piece.split(b"\n")
        lines = [self._end_line(end) for end in ends]
        self._keep(rest)
        return lines

    def _read_piece(self) -> bytes:
        while True:
            try:
                return os.read(self.descriptor, _READ_BYTES)
            except BlockingIOError:  # Standard input can be shared with a program that made it so.
                select.select([self.descriptor], [], [])

    def _keep(self, part: bytes) -> None:
        if not part or self._skipping:
            return
        self._parts.append(part)
        self._parts_bytes += len(part)
        if self._parts_bytes > self._line_bytes_max:
            self._skipping = True
            self._parts.clear()

    def _end_line(self, end: bytes) -> InputLine:
        self._keep(end)
        text = None if self._skipping else b"".join(self._parts)
        self._parts.clear()
        self._parts_bytes = 0
        self._skipping = False
        self._number += 1
        if self._number == 1 and text is not None:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        return InputLine(self._number, text)


class OutputFile:
    """Standard output (`-`), or a file that is written beside its name and takes it when everything is in it.

    Until `commit`, whatever had that name before stays as it was. A device or pipe is written as it is.
    """

    def __init__(self, path: str) -> None:
        """Open it for writing; raises OSError."""
        self._target: Path | None = None
        self._temporary: Path | None = None
        if path == "-":
            require_usable(STANDARD_OUTPUT)
            self.descriptor = STANDARD_OUTPUT
            return
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat.S_ISREG(mode):
                self.descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                return
        self._target = Path(os.path.realpath(path))  # Through a link: the file is replaced, not the link.
        self._temporary = self._target.with_name(f".{self._target.name[:200]}.{secrets.token_hex(6)}.tmp")
        self.descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, content: bytes) -> None:
        """Write all of it; raises OSError, BrokenPipeError where the reader is gone."""
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self.descriptor, view) :]
            except BlockingIOError:  # Standard output can be shared with a program that made it so.
                select.select([], [self.descriptor], [])

    def commit(self) -> None:
        """Make what was written durable and give it its name; raises OSError."""
        if self._target is None or self._temporary is None:
            return
        with contextlib.suppress(FileNotFoundError):
            os.chmod(self.descriptor, stat.S_IMODE(self._target.stat().st_mode))
        os.fsync(self.descriptor)
        os.replace(self._temporary, self._target)
        self._temporary = None
        os.close(self.descriptor)
        sync_directory(self._target.parent)

    def discard(self) -> None:
        """Remove what was not committed. The descriptor stays open: a thread may still be writing to it."""
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None
