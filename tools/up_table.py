"""The table that `dawnchorus up` keeps current on a terminal: one line a node."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..nodes.launcher import NodeEvent

__all__ = ["node_table", "render"]

_STYLES: Final = {"starting": "yellow", "serving": "green", "restarting": "yellow", "stopped": "dim", "refused": "red"}


@contextmanager
def node_table() -> Generator[Callable[[NodeEvent], None], None, None]:
    """Show a table while the block runs; the function that it gives takes each event."""
    latest: dict[str, NodeEvent] = {}
    with Live(render(latest), console=Console(), auto_refresh=False) as live:

        def show(event: NodeEvent) -> None:
            if event.log is not None:
                _print_log(event, live.console)
                return
            latest[event.node] = event
            live.update(render(latest), refresh=True)

        yield show


def _print_log(event: NodeEvent, console: Console) -> None:
    # What a node says in the course of things is for programs (`--json`); a person hears of what is wrong.
    log = event.log or {}
    if log.get("level") in {"warning", "error", "critical"}:
        said = f"{event.node}: {log.get('event')}" + (f": {log['detail']}" if log.get("detail") else "")
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def render(latest: dict[str, NodeEvent]) -> Table:
    """The table of every node's last event, in the order in which the nodes came."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "pid", "endpoint", "shards", "restarts", ""):
        table.add_column(
            column, no_wrap=bool(column), justify="right" if column in {"pid", "shards", "restarts"} else "left"
        )
    for event in latest.values():
        table.add_row(
            event.node,
            Text(event.state, style=_STYLES.get(event.state, "")),
            str(event.pid or "-"),
            event.endpoint,
            str(event.shards),
            str(event.restarts),
            Text(event.detail),
        )
    return table
