"""Options of a run of chaos."""

from __future__ import annotations

import msgspec

from ..harness.workload import WorkloadError
from .script import DEFAULT_PHASES

__all__ = ["NODES", "ChaosOptions", "check_options"]

NODES = ("identity-1", "live-1", "archive-1")
"""Those of the default topology; only identity-1 has a required kind."""


class ChaosOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The defaults take about two and a half minutes."""

    phases: tuple[str, ...] = DEFAULT_PHASES
    rate: float = 1_000.0
    """wakes a second"""
    seconds: float = 6.0
    """of an ordinary phase; others are multiples"""
    agents: int = 10_000
    value_bytes: int = 512
    deadline_ms: int = 100
    node: str = "archive-1"
    """that the faults are done to"""
    seed: int = 1
    """of the agents' values and of the order in which they are woken"""


def check_options(options: ChaosOptions) -> None:
    """Reject what cannot be.

    Raises:
        WorkloadError: says what to change.
    """
    if options.rate <= 0 or options.seconds <= 0:
        raise WorkloadError("a load needs a rate and a time above 0")
    if options.deadline_ms < 1:
        raise WorkloadError("a deadline is at least a millisecond")
    if options.node not in NODES:
        raise WorkloadError(f"there is no node {options.node!r}; permitted: {', '.join(NODES)}")
    under_way = options.rate * options.deadline_ms / 1_000
    if options.agents < 2 * under_way:
        raise WorkloadError(
            f"{options.agents:,} agents are too few: up to {under_way:,.0f} wakes are under way at once, and wakes of "
            "the same agent would be one"
        )
