"""Finds the best goodput of a cluster, by short loads at growing rates: pure.

Goodput is complete wakes a second. It grows with the rate until the cluster cannot do more; then it stays or falls. The
ramp ends where the cluster has twice not done what it was offered, or after RATES_MAX loads.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RATES_MAX", "Ramp"]

_GROWTH: Final = 1.6
"""From rate to rate: the best goodput is then missed by a quarter at most, and ten rates span a factor of 69."""

_DONE_SHARE: Final = 0.9
"""Of what was offered must come back complete for the cluster to have done it."""

RATES_MAX: Final = 10


class Ramp:
    """Rates to be tried, one after the other."""

    def __init__(self, first_rate: float) -> None:
        self._rate = first_rate
        self._tried = 0
        self._overrun = 0
        self.best_per_s = 0.0
        """The best goodput so far."""

    def poll_rate(self) -> float | None:
        """Return the next rate to try, None where the best is known."""
        return None if self._overrun == 2 or self._tried == RATES_MAX else self._rate

    def handle_goodput(self, per_s: float) -> None:
        """Take in what the cluster could of the rate that was given out."""
        self.best_per_s = max(self.best_per_s, per_s)
        self._tried += 1
        self._overrun = self._overrun + 1 if per_s < _DONE_SHARE * self._rate else 0
        self._rate *= _GROWTH
