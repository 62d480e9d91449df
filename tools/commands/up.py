"""`dawnchorus up`: the launcher in the foreground, its events shown as they come.

Ctrl-C, SIGTERM and SIGHUP (the terminal is gone) all ask for the same: end every node, then this process. Asked again,
it goes on ending them: no number of signals leaves a node behind. Events that nobody sees (a closed terminal or pipe, a
reader that has stopped reading, a terminal that Ctrl-S holds) are dropped and counted: losing the reader of a log is no
reason to stop a cluster, nor to wait. So a thread of its own shows them, out of a bounded queue.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import orjson
import uvloop

from ...nodes.bounded_output import BoundedOutput, write_all
from ...nodes.ends import handle_ends
from ...nodes.json_log import log_to_stderr
from ...nodes.launcher import Launcher, NodeEvent

__all__ = ["format_event", "run_up"]

_STANDARD_OUTPUT: Final = 1

_LEVELS: Final = {"restarting": "warning", "failed": "error"}

Show = Callable[[NodeEvent], None]


def run_up(topology: str, *, as_json: bool) -> int:
    """Run all nodes until a signal asks for the end; returns the exit code.

    Raises:
        ConfigurationError: the topology is wrong or a node failed to start; all nodes have been ended.
    """
    log_to_stderr("up")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if as_json or not sys.stdout.isatty():
            lines = BoundedOutput(lambda line: write_all(_STANDARD_OUTPUT, line), _format_dropped)
            try:
                return runner.run(_supervise(topology, lambda event: _put_line(lines, event)))
            finally:
                lines.close()
        from .up_table import NodeTable

        with NodeTable() as table:
            return runner.run(_supervise(topology, table.show))


async def _supervise(topology: str, show: Show) -> int:
    asked = asyncio.Event()
    handle_ends(asyncio.get_running_loop(), asked.set)
    launcher = Launcher(topology, on_event=show)
    starting = asyncio.create_task(launcher.start())
    asking = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({starting, asking}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()  # Raises what was wrong.
        await asking
    finally:
        starting.cancel()
        asking.cancel()
        await asyncio.gather(starting, asking, return_exceptions=True)
        await launcher.stop()
    return 0


def _put_line(lines: BoundedOutput[bytes], event: NodeEvent) -> None:
    line = orjson.dumps(format_event(event, datetime.now(UTC)), option=orjson.OPT_APPEND_NEWLINE)
    lines.put(line, len(line))


def _format_dropped(dropped: int) -> bytes:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    fields = {"time": time, "level": "warning", "event": "lines were dropped", "dropped": dropped}
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def format_event(event: NodeEvent, now: datetime) -> dict[str, object]:
    """Return an event as a log line's fields, the time as in RFC 3339; a node's own log line as it is."""
    if event.log is not None:
        return {"time": now.isoformat(timespec="milliseconds"), "node": event.node, **event.log}
    return {
        "time": now.isoformat(timespec="milliseconds"),
        "level": _LEVELS.get(event.state, "info"),
        "event": f"node {event.state}",
        "node": event.node,
        "state": event.state,
        "pid": event.pid,
        "endpoint": event.endpoint,
        "shards": event.shards,
        "restarts": event.restarts,
        "detail": event.detail,
    }
