"""Logs as JSON: one object a line, for programs; people get `dawnchorus up` on a terminal.

A thread that logs never waits for the log's reader (`bounded_output`): a commit may log, and a launcher may hang.
"""

from __future__ import annotations

import atexit
import json
import logging
from datetime import UTC, datetime
from typing import Final

from ..wire.repeated_lines import RepeatedLines
from .bounded_output import BoundedOutput, write_all

__all__ = ["JSONFormatter", "log_repeated", "log_to_stderr"]

_STANDARD_ERROR: Final = 2

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """{"time": RFC 3339 UTC, "level", "event", "node", ...} with whatever `extra` a record carries."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "node": self._node,
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS})
        if record.exc_info is not None:
            line["trace"] = self.formatException(record.exc_info)
        # The standard library's: it accepts any value, also a path that is not UTF-8, which orjson rejects.
        return json.dumps(line, default=str)


_repeated = RepeatedLines()
_shown_by: list[logging.Handler] = []


def log_repeated(*, at_end: bool = False) -> None:
    """Log how often each suppressed line was repeated, if its minute has passed; `at_end`: of all lines."""
    for record in _repeated.take_counts(all_of_them=at_end):
        for handler in _shown_by:
            handler.handle(record)


def log_to_stderr(node: str) -> None:
    """Send this process's log to standard error as JSON, each line that repeats once a minute.

    When the process ends, its last lines get a moment to be written.
    """
    formatter = JSONFormatter(node)

    def describe_dropped(dropped: int) -> bytes:
        news = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines were dropped", None, None)
        news.dropped = dropped
        return _line(formatter, news)

    output = BoundedOutput(lambda line: write_all(_STANDARD_ERROR, line), describe_dropped)
    atexit.register(output.close)
    handler = _Handler(output, formatter)
    handler.addFilter(_repeated)
    _shown_by[:] = [handler]
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _line(formatter: logging.Formatter, record: logging.LogRecord) -> bytes:
    return formatter.format(record).encode(errors="backslashreplace") + b"\n"


class _Handler(logging.Handler):
    """A handler that delivers each record to an output as a line."""

    def __init__(self, output: BoundedOutput[bytes], formatter: logging.Formatter) -> None:
        super().__init__()
        self._output = output
        self._formatter = formatter

    def emit(self, record: logging.LogRecord) -> None:
        line = _line(self._formatter, record)
        self._output.put(line, len(line))
