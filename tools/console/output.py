"""Output of commands: results on standard output, problems and progress on standard error.

rich is imported only where something is drawn on a terminal: its 40 ms are felt in scripts that call a command often.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, Protocol

import click
import orjson

__all__ = [
    "PROBLEMS_LISTED_MAX",
    "PROBLEMS_SHOWN_MAX",
    "Problems",
    "ProgressBar",
    "format_bytes",
    "print_json",
    "progress_bar",
    "seconds",
]

PROBLEMS_SHOWN_MAX: Final = 20
"""Problems printed one by one: a screenful; the rest is counted."""

PROBLEMS_LISTED_MAX: Final = 1_000
"""Problems kept for `--json`: bounds what a file of nothing but broken lines costs."""


def print_json(value: object, *, to_stderr: bool = False) -> None:
    """Print one line of JSON, at once."""
    click.echo(orjson.dumps(value), err=to_stderr)


def format_bytes(size: float) -> str:
    """Return a size for people: `812 B`, `1.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def seconds(duration_s: float) -> str:
    """Return a duration for people: `0.4 s`, `12 min`, `3.5 h`, `2.1 d`."""
    if duration_s < 100:
        return f"{duration_s:.1f} s"
    for unit, length_s, enough in (("min", 60, 100), ("h", 3600, 48)):
        if duration_s < length_s * enough:
            return f"{duration_s / length_s:.1f} {unit}"
    return f"{duration_s / 86400:.1f} d"


class ProgressBar(Protocol):
    """Where long work shows how far it is, and prints what must not tear the bar apart."""

    def show(self, text: str, done: float, total: float | None) -> None:
        """Show `text` beside a bar at `done` of `total`; None where nobody knows the total."""
        ...

    def print(self, message: str) -> None:
        """Print a line above the bar."""
        ...


class _NoBar:
    def show(self, text: str, done: float, total: float | None) -> None:
        pass

    def print(self, message: str) -> None:
        click.echo(message, err=True)


@contextmanager
def progress_bar(label: str) -> Generator[ProgressBar, None, None]:
    """Show a bar on standard error while the block runs, if that is a terminal; else only `print` has an effect."""
    if not sys.stderr.isatty():
        yield _NoBar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None)

        class _Bar:
            def show(self, text: str, done: float, total: float | None) -> None:
                progress.update(task, description=f"{label} {text}", completed=done, total=total)

            def print(self, message: str) -> None:
                progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

        yield _Bar()


class Problems:
    """Problems with single lines or agents while the rest went on: some are printed, more are kept."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self.count = 0
        self.listed: list[dict[str, object]] = []

    def add(self, message: str, **place: object) -> None:
        """Take a problem: `message` names the place for people, `place` for programs (`line=12`, `agent_id="a"`)."""
        self.count += 1
        if self.count <= PROBLEMS_SHOWN_MAX:
            self._bar.print(message)
        if len(self.listed) < PROBLEMS_LISTED_MAX:
            self.listed.append({**place, "problem": message})

    def finish(self) -> None:
        """Say how many were not shown."""
        if self.count > PROBLEMS_SHOWN_MAX:
            self._bar.print(f"... and {self.count - PROBLEMS_SHOWN_MAX:,} more problems")
