"""The table that `dawnchorus up` keeps current on a terminal: one line a node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...nodes.bounded_output import BoundedOutput
from ...nodes.launcher import NodeEvent
from ..console.standard_streams import unlocked_output

__all__ = ["NodeTable", "render"]

_EVENT_BYTES: Final = 512
"""Bytes of an event beside its detail, about."""

_STYLES: Final = {"starting": "yellow", "serving": "green", "restarting": "yellow", "stopped": "dim", "failed": "red"}


class NodeTable:
    """The table, kept current while the block runs by a thread that alone draws: a terminal may stop (Ctrl-S)."""

    def __init__(self) -> None:
        self._latest: dict[str, NodeEvent] = {}
        self._drawing: BoundedOutput[Callable[[], None]] = BoundedOutput(_call, self._describe_dropped)

    def __enter__(self) -> Self:
        console = Console(file=unlocked_output())
        self._live = Live(
            render(self._latest), console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._drawing.put(self._live.start, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._drawing.put(self._live.stop, 0)
        self._drawing.close()

    def show(self, event: NodeEvent) -> None:
        """Show an event, as soon as the terminal takes it."""
        said = "" if event.log is None else _said_by_node(event.node, event.log)
        if said:
            self._drawing.put(partial(self._print, said), len(said))
        elif event.log is None:
            self._drawing.put(partial(self._draw, event), _EVENT_BYTES + len(event.detail))

    # --- in the thread ---

    def _draw(self, event: NodeEvent) -> None:
        if event.state == "restarting":  # the line is overwritten soon: what ended the node is worth keeping
            self._print(f"{event.node}: {event.detail}")
        self._latest[event.node] = event
        self._live.update(render(self._latest), refresh=True)

    def _print(self, said: str) -> None:
        self._live.console.print(said, markup=False, highlight=False, soft_wrap=True)

    def _describe_dropped(self, dropped: int) -> Callable[[], None]:
        return partial(self._print, f"{dropped:,} lines were dropped: nothing could be shown here")


def _call(drawing: Callable[[], None]) -> None:
    drawing()


def _said_by_node(node: str, log: dict[str, Any]) -> str:
    # Lines without a problem are for programs (`--json`); a person is shown warnings and errors.
    if log.get("level") not in {"warning", "error", "critical"}:
        return ""
    return f"{node}: {log.get('event')}" + (f": {log['detail']}" if log.get("detail") else "")


def render(latest: dict[str, NodeEvent]) -> Table:
    """Return the table of every node's last event, in the order in which the nodes came."""
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
