"""Log lines that would come as often as something is asked for: each is let through once, then counted.

An error of one request is often that of the next, too: a full disk wrote 119 KB of the same lines a second. Within a
minute a line is let through once; how often it would have come again is said with the next one, or when the minute is
over. Lines below WARNING are not held back: they report rare events.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["RepeatedLines", "limited_logger"]

EVERY_S: Final = 60.0

VARIANTS_MAX: Final = 20
"""Lines of one event that are distinguished by what they name (a shard, a detail); further ones count as one line."""

_Key = tuple[object, ...]


class _Line:
    __slots__ = ("began", "record", "repeated")

    def __init__(self, began: float, record: logging.LogRecord) -> None:
        self.began = began
        self.record = record
        self.repeated = 0


class RepeatedLines(logging.Filter):
    """A filter for a handler, or a logger; any thread may log."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, *, in_text: bool = False) -> None:
        """`monotonic` gives seconds; tests give their own. `in_text` adds the count to what a line says."""
        super().__init__()
        self._in_text = in_text
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._lines: dict[_Key, dict[_Key, _Line]] = {}
        """By event, and by what it names."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is to be shown; `repeated` is put on it if it was held back before."""
        if record.levelno < logging.WARNING or hasattr(record, "repeated"):
            return True
        now = self._monotonic()
        with self._lock:
            lines = self._lines.setdefault((record.name, record.msg), {})
            key = _named_by(record)
            if key not in lines and len(lines) >= VARIANTS_MAX:
                key = ()
            line = lines.get(key)
            if line is not None and now - line.began < EVERY_S:
                line.repeated += 1
                line.record = record
                return False
            if line is not None and line.repeated:
                record.repeated = line.repeated
                if self._in_text:
                    record.msg, record.args = f"{record.getMessage()} ({line.repeated} times more since)", ()
            lines[key] = _Line(now, record)
            return True

    def take_counts(self, *, all_of_them: bool = False) -> list[logging.LogRecord]:
        """Return a line for each that was held back and whose minute is over, with how often: to be shown."""
        now = self._monotonic()
        counts: list[logging.LogRecord] = []
        with self._lock:
            for event, lines in list(self._lines.items()):
                for key, line in list(lines.items()):
                    if all_of_them or now - line.began >= EVERY_S:
                        del lines[key]
                        if line.repeated:
                            counted = copy.copy(line.record)
                            counted.repeated = line.repeated
                            counts.append(counted)
                if not lines:
                    del self._lines[event]
        return counts


def limited_logger(name: str) -> logging.Logger:
    """Return the logger of a module in a user's process: each of its lines comes once a minute."""
    logger = logging.getLogger(name)
    logger.addFilter(RepeatedLines(in_text=True))
    return logger


def _named_by(record: logging.LogRecord) -> _Key:
    """Return the key of a line of an event: what the line names, and the place where an exception was raised."""
    named = [str(getattr(record, field, "")) for field in ("store", "shard", "node", "detail")]
    error = record.exc_info[1] if record.exc_info else None
    trace = error.__traceback__ if error is not None else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return (*named, type(error).__name__, place)
