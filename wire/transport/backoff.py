"""Pauses of a router before it tries a node again: pure.

Each pause is about an eighth longer than the one before, up to a longest one: a node that was away for a while is found
after about an eighth of that again. (Twice as long, a link that breaks for 0.3 s at a time was up for half as long.)
It is drawn at random, so that a thousand hosts that lost the same node in the same moment do not come back in one:
they are spread over about a pause, at each attempt. libzmq has a back-off too, but draws nothing at random once
a longest pause is set, and forgets it whenever a peer accepts, even one that hangs up at once (docs/decisions/0009).
Here only a Welcome makes the next pause short again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

__all__ = ["PAUSE_MAX_S", "REFUSED_S", "Backoff"]

_PAUSE_MIN_S: Final = 0.015
"""The shortest that the first pause can be."""

_GROWTH: Final = 1.125
"""The longest pause comes after 21 attempts, about 2 s."""

PAUSE_MAX_S: Final = 0.32
"""The longest pause: a restarted node is found within a third of a second, however long it was away."""

REFUSED_S: Final = 2.0
"""About how long a router stays away from a node that rejected its Hello: a person has to change something."""

_SPREAD: Final = 0.5
"""A pause is drawn between this share of its length and the full length."""


class Backoff:
    """Pauses between attempts to reach one node."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._longest_s = _PAUSE_MIN_S / _SPREAD

    def next_pause_s(self) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        longest_s = self._longest_s
        self._longest_s = min(PAUSE_MAX_S, _GROWTH * longest_s)
        return self._drawn(longest_s)

    def refused_pause_s(self) -> float:
        """Return how long to stay away after a rejection, in seconds."""
        return self._drawn(REFUSED_S)

    def handle_welcome(self) -> None:
        """Make the next pause a short one again: the node accepted this router."""
        self._longest_s = _PAUSE_MIN_S / _SPREAD

    def _drawn(self, longest_s: float) -> float:
        return longest_s * (_SPREAD + (1.0 - _SPREAD) * self._chance())
