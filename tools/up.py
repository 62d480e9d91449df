"""`dawnchorus up`: the launcher in the foreground, its events shown as they come.

Ctrl-C, SIGTERM and SIGHUP (the terminal is gone) all ask for the same: end every node, then this process. Asked again,
it goes on ending them: no number of signals leaves a node behind. Events that nobody can see any more (a closed
terminal or pipe) are dropped: losing the reader of a log is no reason to stop a cluster.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import orjson
import uvloop

from ..nodes.launcher import Launcher, NodeEvent

__all__ = ["format_event", "run_up"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LEVELS: Final = {"restarting": "warning", "refused": "error"}

Show = Callable[[NodeEvent], None]


def run_up(topology: str, *, as_json: bool) -> int:
    """Run all nodes until a signal asks for the end; returns the exit code.

    Raises:
        ConfigurationError: the topology is wrong or a node refused to start; all nodes have been ended.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if as_json or not sys.stdout.isatty():
            return runner.run(_supervise(topology, _show_as_json))
        from .up_table import node_table

        with node_table() as show:
            return runner.run(_supervise(topology, show))


async def _supervise(topology: str, show: Show) -> int:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, asked.set)
    launcher = Launcher(topology, on_event=_forgiving(show))
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


def _forgiving(show: Show) -> Show:
    def show_or_drop(event: NodeEvent) -> None:
        try:
            show(event)
        except OSError:
            return  # The terminal or pipe is gone.

    return show_or_drop


def _show_as_json(event: NodeEvent) -> None:
    line = orjson.dumps(format_event(event, datetime.now(UTC)), option=orjson.OPT_APPEND_NEWLINE)
    # Straight to the descriptor: what a closed pipe did not take must not wait in a buffer for the interpreter's end.
    os.write(sys.stdout.fileno(), line)


def format_event(event: NodeEvent, now: datetime) -> dict[str, object]:
    """An event as a log line's fields, the time as in RFC 3339; a node's own log line as it is."""
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
