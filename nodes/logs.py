"""Logs as JSON: one object a line, for programs; people get `dawnchorus up` on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["JSONFormatter", "log_to_stderr"]

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
        # The standard library's: it takes whatever comes, also a path that is not UTF-8, which orjson refuses.
        return json.dumps(line, default=str)


def log_to_stderr(node: str) -> None:
    """Send this process's log to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter(node))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
