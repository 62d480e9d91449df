"""Finds the best goodput of a cluster, by short loads at growing rates: pure.

Goodput is complete wakes a second. It grows with the rate until the cluster cannot do more; then it stays or falls. The
ramp grows until the cluster has not done what it was offered three times in a row, or ten rates were tried; then it
tries rates between the last that was done and the next.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RATES_MAX", "Ramp"]

_GROWTH: Final = 1.6
"""From rate to rate: eight of them span a factor of 27."""

_BETWEEN: Final = 3
"""The last step is cut into so many: the best goodput is missed by 15 % at most, also where overload makes it fall."""

_DONE_SHARE: Final = 0.9
"""Of what was offered must come back complete for the cluster to have done it."""

_OVERRUNS_MAX: Final = 3
"""Rates not done, one after the other, after which there is nothing more to be had: a machine has its bad moments."""

_GROWING_MAX: Final = 10

RATES_MAX: Final = _GROWING_MAX + _BETWEEN - 1


class Ramp:
    """Rates to be tried, one after the other."""

    def __init__(self, first_rate: float) -> None:
        self._rates = [first_rate]
        self._tried = 0
        self._overrun = 0
        self._done_rate: float | None = None
        self._growing = True
        self.best_per_s = 0.0
        """The best goodput so far."""
        self.best_rate = first_rate
        """The rate that it was had at."""

    def poll_rate(self) -> float | None:
        """Return the next rate to try, None where the best is known."""
        return self._rates[0] if self._rates else None

    def handle_goodput(self, per_s: float) -> None:
        """Take in what the cluster could of the rate that was given out."""
        rate = self._rates.pop(0)
        if per_s > self.best_per_s:
            self.best_per_s, self.best_rate = per_s, rate
        self._tried += 1
        if not self._growing:
            return
        if per_s >= _DONE_SHARE * rate:
            self._done_rate, self._overrun = rate, 0
        else:
            self._overrun += 1
        if self._overrun < _OVERRUNS_MAX and self._tried < _GROWING_MAX:
            self._rates.append(rate * _GROWTH)
            return
        self._growing = False
        if self._overrun and self._done_rate is not None:
            self._rates += [self._done_rate * _GROWTH ** (step / _BETWEEN) for step in range(1, _BETWEEN)]
