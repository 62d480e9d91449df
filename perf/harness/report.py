"""Tables that all reports share: spreads, tails, and ratios beside their targets."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import msgspec
from rich.table import Table
from rich.text import Text

from .measure import Spread, Tail

__all__ = [
    "Target",
    "add_spread",
    "add_tail",
    "marked",
    "note_lines",
    "ratios_table",
    "spreads_table",
    "table",
    "tails_table",
]


_TAIL_COLUMNS = ("median", "p99", "a second")


class Target(msgspec.Struct, frozen=True):
    """A ratio that must be reached, and one that is aimed at."""

    must: float
    aim: float | None


def table(title: str, *columns: str, first: str = "what") -> Table:
    """Return a table of figures with a title: these columns behind the first one, which says of what they are."""
    made = Table(title=title, title_justify="left", title_style="bold")
    made.add_column(first)
    for column in columns:
        made.add_column(column, justify="right")
    return made


def spreads_table(title: str) -> Table:
    """Return a table of spreads, each with its rate in agents a second."""
    return table(title, "best", "median", "worst", "agents/s at the median")


def tails_table(title: str) -> Table:
    """Return a table of small operations, each with its rate."""
    return table(title, *_TAIL_COLUMNS)


def add_spread(rows: Table, what: str, spread: Spread | None, agents: int) -> None:
    """Add how long some work on so many agents took; None: it was not measured."""
    if spread is None:
        rows.add_row(what, "-", "not measured", "-", "-")
    else:
        cells = [f"{milliseconds:,.1f} ms" for milliseconds in (spread.min, spread.p50, spread.max)]
        rows.add_row(what, *cells, f"{agents / spread.p50 * 1000:,.0f}")


def add_tail(rows: Table, what: str, tail: Tail | None) -> None:
    """Add how long small operations took to a table of spreads, or of median, p99 and rate; None: not measured."""
    among_spreads = len(rows.columns) > len(_TAIL_COLUMNS) + 1
    if tail is None:
        rows.add_row(what, "-", "not measured", "-", "-")
        return
    cells = [f"{tail.p50:,.0f} us", f"{tail.p99:,.0f} us", f"{1e6 / tail.p50:,.0f}"]
    rows.add_row(what, *(["", cells[0], f"p99 {cells[1]}", cells[2]] if among_spreads else cells))


def marked(text: str, *, met: bool) -> Text:
    """Return a figure in the colour of whether it is what it must be."""
    return Text(text, style="green" if met else "bold red")


def note_lines(notes: Iterable[str]) -> list[Text]:
    """Return the notes of a report as lines."""
    return [Text(f"Note: {note}", style="yellow") for note in notes]


def ratios_table(
    ratios: msgspec.Struct, texts: Mapping[str, str], targets: Mapping[str, Target], speeds: Container[str]
) -> Table:
    """Return the ratios that `texts` name, each beside its target, if any; of those in `speeds` more is faster."""
    rows = Table(title="Beside the peers (medians divided)", title_justify="left", title_style="bold")
    rows.add_column("what")
    rows.add_column("ratio", justify="right")
    rows.add_column("in words")
    if targets:
        rows.add_column("must", justify="right")
        rows.add_column("aim", justify="right")
    for name, text in texts.items():
        value: float | None = getattr(ratios, name)
        faster_is_more = name in speeds
        target = targets.get(name)
        cells = [text, *_ratio_cells(value, target, faster_is_more=faster_is_more)]
        if targets:
            sign = ">=" if faster_is_more else "<="
            cells.append(f"{sign} {target.must:g}" if target else "")
            cells.append(f"{sign} {target.aim:g}" if target and target.aim is not None else "")
        rows.add_row(*cells)
    return rows


def _ratio_cells(value: float | None, target: Target | None, *, faster_is_more: bool) -> list[Text | str]:
    """Return a ratio and what it means in words, coloured by whether it is what it must be."""
    if value is None:
        return ["-", "not measured"]
    speed = value if faster_is_more else 1 / value
    words = f"{speed:.1f} times as fast" if speed >= 1 else f"{1 / speed:.1f} times as long"
    if target is None:
        return [f"{value:.3g}", words]
    met = value >= target.must if faster_is_more else value <= target.must
    return [marked(f"{value:.3g}", met=met), words if met else f"{words}; must is missed"]
