"""Progress of long work, as it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "no_progress"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the phase in words, how much of it is done, and how much there is; often, so it must be cheap."""


def no_progress(phase: str, done: int, total: int) -> None:
    """Show nothing."""
