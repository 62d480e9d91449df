"""Acceptance of more routers, as long as a node has descriptors to spare.

Every connection takes a descriptor, and so does much of what a node does for itself. RESERVE of them are held, so that
newcomers cannot take them, and before that there is a margin:

    OPEN  every router is welcome
    FULL  the margin is reached: a router that comes is asked to come later
    SHUT  half of it is gone, because many came at once or do not leave: the kernel accepts no connection any more, and
          the held ones are released, for the node itself and for those that the kernel had accepted already

Connected routers notice nothing of it. How many clients there is room for is known from the start; the ones in
use are counted once a tick, because of connections without a Hello and other uses.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import Final

from ..descriptors import Reserve, count_descriptors, descriptors_max, lowest_free

__all__ = ["IPC_DESCRIPTORS_MIN", "RESERVE", "Acceptance", "Doors"]

RESERVE: Final = 128
"""Descriptors that are held: for logs, backups, and reads of /proc, and for the hundred connections at most
that wait in the kernel when it begins to accept none. Of a limit below 1,024, an eighth."""

_MARGIN: Final = 64
"""Descriptors before that: a sixteenth of the limit if that is less, a sixty-fourth if that is more."""

IPC_DESCRIPTORS_MIN: Final = 4_096
"""Below this limit a node has no ipc endpoint. libzmq ends the process if it finds no descriptor for a connection
that comes in over ipc (not over TCP): as no router is sent there once half of them are in use, that takes thousands
that come over TCP in the quarter of a second in which a router moves to ipc."""

_log = logging.getLogger(__name__)


class Doors(enum.Enum):
    """The routers that may connect."""

    OPEN = enum.auto()
    FULL = enum.auto()
    SHUT = enum.auto()


class Acceptance:
    """Judges by descriptors, and notifies the kernel and the log of changes."""

    def __init__(
        self,
        shut: Callable[[bool], object],
        *,
        limit: int | None = None,
        free: Callable[[], int] = lowest_free,
        count: Callable[[], int] = count_descriptors,
        reserve: Reserve | None = None,
    ) -> None:
        """Make it; `shut(True)` accepts no connection any more, `shut(False)` all again."""
        self._shut = shut
        self.limit = descriptors_max() if limit is None else limit
        """Descriptors that this process may have."""
        self._kept = min(RESERVE, self.limit // 8)
        self._margin = max(min(_MARGIN, self.limit // 16), self.limit // 64)
        self._to_give = self.limit - self._kept - self._margin
        self._reserve = Reserve() if reserve is None else reserve
        self._free = free
        self._count = count
        self.doors = Doors.OPEN
        self.used = 0
        """Descriptors in use, as counted last, without those that are held."""
        self._reserve.take(self._kept)
        self.used = self._count() - len(self._reserve)
        self.clients_max = self._to_give - self.used
        """Clients that there are descriptors for: to be made when the node has all its own, and no client yet."""

    def admits(self, clients: int) -> bool:
        """Return whether one more may stay beside so many that are welcome already."""
        if clients < self.clients_max:
            return self.doors is Doors.OPEN
        if self.doors is Doors.OPEN:
            self._move(Doors.FULL)
        return False

    def offers_ipc(self) -> bool:
        """Return whether a router may be sent to the ipc endpoint."""
        return self.doors is Doors.OPEN and self.limit >= IPC_DESCRIPTORS_MIN and self._free() < self.limit // 2

    def handle_tick(self, clients: int) -> None:
        """Count the descriptors in use, and judge anew, while so many clients are welcome."""
        self.used = self._count() - len(self._reserve)
        over = self.used - self._to_give
        room = min(-over, self.clients_max - clients)
        if over > max(1, self._margin // 2):
            self._move(Doors.SHUT)
        elif over > 0:
            self._move(Doors.FULL)
        elif self.doors is not Doors.OPEN:
            self._move(Doors.OPEN if room > self._margin // 2 else Doors.FULL)

    def close(self) -> None:
        """Release what is held."""
        self._reserve.release()

    def why(self) -> str:
        """Return why a router is not taken, and what to do."""
        return (
            f"this node takes no more clients: {self._to_give:,} of its {self.limit:,} descriptors are in "
            "use, the others it keeps; raise its limit (`ulimit -n`, LimitNOFILE=) or use fewer clients"
        )

    def _move(self, doors: Doors) -> None:
        before, self.doors = self.doors, doors
        if before is not Doors.SHUT and doors is Doors.SHUT:
            self._shut(True)
            self._reserve.release()
        elif before is Doors.SHUT and doors is not Doors.SHUT:
            self._reserve.take(self._kept)
            self._shut(False)
        facts = {"descriptors": self.used, "descriptors_max": self.limit}
        if before is Doors.OPEN and doors is not Doors.OPEN:
            _log.warning("takes no more clients", extra={**facts, "detail": self.why()})
        elif before is not Doors.OPEN and doors is Doors.OPEN:
            _log.info("takes clients again", extra=facts)
