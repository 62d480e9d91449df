"""The console that tables for people are printed on."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console

__all__ = ["result_console"]

FILE_COLUMNS: Final = 140
"""Characters on a line of a table that goes into a file or pipe: rich would take 80, and cut what does not fit."""


def result_console() -> Console:
    """Return standard output, as wide as the terminal; in a file or pipe tables are not cut."""
    return Console() if sys.stdout.isatty() else Console(width=FILE_COLUMNS)
