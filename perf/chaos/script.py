"""The script of a run: which fault follows which, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ...wire.errors import ConfigurationError

__all__ = ["DEFAULT_PHASES", "PHASE_NAMES", "ScriptError", "Step", "Stretch", "parse_phases", "script", "stretches"]

_LENGTHS: Final = {
    "healthy": 1.0,
    "stopped": 1.0,
    "late": 1.0,
    "killed": 1.0,
    "dying": 1.5,
    "flapping": 5.0,
    "cut-off": 1.0,
    "overload": 10 / 3,
    "after": 1.0,
}
"""Of each phase, times the length of an ordinary one: with 6 s flapping lasts 30 s and overload 20 s."""

PHASE_NAMES: Final = tuple(_LENGTHS)

DEFAULT_PHASES: Final = (
    "healthy",
    "stopped",
    "after",
    "late",
    "killed",
    "dying",
    "after",
    "flapping",
    "cut-off",
    "after",
    "overload",
    "after",
)

_PHASES_MAX: Final = 100


class ScriptError(ConfigurationError):
    """The phases asked for cannot be had; the message says what to change."""


class Step(msgspec.Struct, frozen=True):
    """One phase and its length."""

    phase: str
    seconds: float


class Stretch(msgspec.Struct, frozen=True):
    """Steps that are done to one and the same cluster; `secluded`: in a network namespace of its own."""

    steps: tuple[Step, ...]
    secluded: bool


def parse_phases(text: str) -> tuple[str, ...]:
    """Return the phases of a comma-separated list. Raises ScriptError: there is none, or too many, or no such one."""
    phases = tuple(name.strip() for name in text.split(","))
    for name in phases:
        if name not in _LENGTHS:
            raise ScriptError(f"there is no phase {name!r}; permitted: {', '.join(PHASE_NAMES)}")
    if len(phases) > _PHASES_MAX:
        raise ScriptError(f"{len(phases)} phases are too many; permitted: at most {_PHASES_MAX}")
    return phases


def script(phases: Iterable[str], seconds: float) -> list[Step]:
    """Return the phases with their lengths; an ordinary one takes `seconds`."""
    return [Step(phase, _LENGTHS[phase] * seconds) for phase in phases]


def stretches(steps: Sequence[Step]) -> list[Stretch]:
    """Cut a script where the cluster changes.

    `cut-off` has a cluster of its own, secluded; so has `overload`, which is to meet one that nothing has been done to;
    `after` belongs to what it follows.
    """
    cut: list[list[Step]] = []
    alone = ""
    for step in steps:
        own = step.phase if step.phase in ("cut-off", "overload") else alone if step.phase == "after" else ""
        if not cut or own != alone:
            cut.append([])
        alone = own
        cut[-1].append(step)
    return [Stretch(tuple(part), part[0].phase == "cut-off") for part in cut]
