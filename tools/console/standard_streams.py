"""Standard input, output and error as a command finds them: closed, full, or without a reader.

A descriptor that was closed (`>&-`) is free, and the next file that a process opens gets its number: the data of a
shard would become its standard output. So closed ones are opened at once, with a file that is open the wrong way
round: a read or write there is an error, and not an empty file or a hole.

The output of a command (results, progress, problems) is lost then, as was asked for, and its exit code counts. A failed
write to a standard output that is there (a full disk) is an error, since the output is wanted; to standard error it is
lost, because there is no place left to say so.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, BinaryIO, Final, TextIO, cast

from ...nodes.bounded_output import write_all

__all__ = ["discard_output", "prepare", "require_usable", "unlocked_output"]

_INPUT: Final = 0
_OUTPUT: Final = 1
_ERROR: Final = 2
_NAMES: Final = {_INPUT: "standard input", _OUTPUT: "standard output", _ERROR: "standard error"}

_closed: Final[set[int]] = set()


def prepare() -> None:
    """Make the standard streams of this process fit to be used; called once, before any other file is opened."""
    for descriptor in _NAMES:
        try:
            os.fstat(descriptor)
        except OSError:
            _closed.add(descriptor)
            # The lowest number that is free is taken: those before it have been filled.
            os.open(os.devnull, os.O_WRONLY if descriptor == _INPUT else os.O_RDONLY)
    if _INPUT in _closed:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout = _text(_Forgiving(_OUTPUT) if _OUTPUT in _closed else _Output(_OUTPUT), sys.stdout)
    sys.stderr = _text(_Forgiving(_ERROR), sys.stderr)


def require_usable(descriptor: int) -> None:
    """Raise OSError for a standard stream that was closed when this process began."""
    if descriptor in _closed:
        raise OSError(errno.EBADF, f"{_NAMES[descriptor]} is closed")


def unlocked_output() -> TextIO:
    """Return standard output as a text of its own, for one thread that may be stuck in it when the process ends.

    It has no buffer, and so no lock that the end of the interpreter would wait for.
    """
    return io.TextIOWrapper(cast("BinaryIO", _Output(_OUTPUT)), encoding=sys.stdout.encoding, write_through=True)


def discard_output() -> None:
    """Let what is still buffered for standard output go nowhere.

    It would fail again, loudly, when the interpreter ends: https://docs.python.org/3/library/signal.html#note-on-sigpipe
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class _Output(io.RawIOBase):
    """A descriptor that is written to as a whole, and whose errors name it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: Any, /) -> int:
        size = memoryview(content).nbytes
        try:
            write_all(self._descriptor, content)
        except OSError as error:
            self.handle_lost(error)
        return size

    def handle_lost(self, error: OSError) -> None:
        """Raise the error of a failed write."""
        if isinstance(error, BrokenPipeError):
            raise error
        raise OSError(error.errno, f"{_NAMES[self._descriptor]}: {error.strerror}") from error


class _Forgiving(_Output):
    """One that loses what cannot be written."""

    def handle_lost(self, error: OSError) -> None:
        pass


def _text(raw: _Output, like: TextIO | None) -> TextIO:
    """Return a text stream as Python makes them; `like` is the one that it made, None for a closed descriptor."""
    if not isinstance(like, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace")
    lines, buffered = like.line_buffering, io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding=like.encoding, errors=like.errors, line_buffering=lines)
