"""Liveness of the other end of a connection: pure.

Both ends count ticks of LIVENESS_TICK_S. Every frame that comes in is a sign of life, and nothing is asked meanwhile.
An end that has heard nothing for a tick asks (Ping, Pong); after SILENT_TICKS it marks the other end silent.

Silent is not dead. A process whose loop is busy, one that was stopped, and one whose host is gone all say nothing.
Only the kernel knows of the last: it closes the connection, and that is what dead means here. So silence has no
effect that could not be undone when the other end speaks again (docs/decisions/0008).

A tick that comes late counts as one however late it is, and before it is counted all waiting frames are received: a
loop that was busy itself blames no peer for it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LIVENESS_TICK_S", "SILENT_TICKS", "Silence", "is_asked"]

LIVENESS_TICK_S: Final = 0.95
"""The interval at which an end looks whether it has heard anything."""

SILENT_TICKS: Final = 3
"""Ticks without a sign of life after which the other end is silent: 2.85 to 3.8 s after its last word."""


class Silence:
    """The silence of one other end, in ticks."""

    __slots__ = ("heard", "ticks")

    def __init__(self) -> None:
        self.heard = True
        """Set whenever something comes in."""
        self.ticks = 0
        """Full ticks without a frame."""

    def handle_tick(self) -> int:
        """Count a tick that has ended, after everything that came in it was received; return `ticks`."""
        self.ticks = 0 if self.heard else self.ticks + 1
        self.heard = False
        return self.ticks


def is_asked(ticks: int) -> bool:
    """Return whether an end that has been quiet for so many ticks is asked again: seldom once it has been for long."""
    return 0 < ticks < _SELDOM_TICKS or (ticks > 0 and ticks % _SELDOM_TICKS == 0)


_SELDOM_TICKS: Final = 8
"""A process that is stopped for hours shall not find thousands of questions."""
