"""Logs: one JSON object a line, whatever is logged."""

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dawnchorus.nodes.json_log import JSONFormatter


def formatted(message: str = "event", *arguments: object, **fields: Any) -> dict[str, Any]:
    level, trace = fields.pop("level", logging.INFO), fields.pop("exc_info", None)
    record = logging.getLogger("x").makeRecord("x", level, __file__, 1, message, arguments, trace, None, fields)
    line = JSONFormatter("live-1").format(record)
    assert "\n" not in line
    made: dict[str, Any] = json.loads(line)
    return made


def test_line_has_time_level_event_and_node() -> None:
    line = formatted("shard %s fails", 3, level=logging.ERROR)
    assert (line["level"], line["event"], line["node"]) == ("error", "shard 3 fails", "live-1")
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert set(line) == {"level", "event", "node"}


def test_extra_fields_are_beside_the_event() -> None:
    line = formatted(store="live", shard=3, detail="é\n\x00", folder=Path("/x"), counts={"a": [1, None]})
    assert (line["store"], line["shard"], line["detail"]) == ("live", 3, "é\n\x00")
    assert (line["folder"], line["counts"]) == ("/x", {"a": [1, None]})


def test_an_exception_brings_its_trace() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        line = formatted(exc_info=sys.exc_info())
    assert "ValueError: a\nb" in line["trace"]
    assert "test_json_log.py" in line["trace"]


def test_values_unknown_to_json_become_text() -> None:
    line = formatted(odd=object, large=1 << 70)
    assert line["odd"] == "<class 'object'>"
    assert line["large"] == 1 << 70


@pytest.mark.real
def test_a_process_logs_to_standard_error_only() -> None:
    program = """
import logging
from dawnchorus.nodes.json_log import log_to_stderr
logging.warning("before")
log_to_stderr("live-1")
logging.getLogger("some.module").info("hello", extra={"n": 1})
logging.getLogger("some.module").debug("too fine")
logging.warning("%s", "odd \\udcff text")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert ended.stdout == b""
    _, *lines = ended.stderr.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["hello", "odd \udcff text"]
