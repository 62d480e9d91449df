"""A check of turns at a node: no router's requests overtake another's that has waited for its turn."""

from typing import Final

from dawnchorus.wire.protocol.messages import PING, Commit, Fetch, Status, decode_request

__all__ = ["FairTurns"]

_TURNS_MAX: Final = 2
"""Turns of another peer that a request may see which comes while nothing of its own peer waits: one that is under way
or due before it, and one more."""


class FairTurns:
    """Requests that wait at one node, and how many turns others have had since each came."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._turns: dict[bytes, int] = {}
        self._waiting: dict[bytes, list[int]] = {}
        self._blocked: set[bytes] = set()
        self._parked: set[tuple[bytes, int]] = set()
        self._at_arrival: dict[tuple[bytes, int], dict[bytes, int]] = {}
        self.violations: list[str] = []

    def forget(self) -> None:
        """Forget everything: the node starts again."""
        self._turns.clear()
        self._waiting.clear()
        self._blocked.clear()
        self._parked.clear()
        self._at_arrival.clear()

    def handle_arrival(self, peer: bytes, frame: bytes) -> None:
        """Watch a frame that came if it is a request and the first that waits of its peer."""
        if frame == PING:
            return
        request = decode_request(frame)
        if isinstance(request, Fetch | Commit | Status):
            waiting = self._waiting.setdefault(peer, [])
            if not waiting and peer not in self._blocked:
                self._at_arrival[peer, request.request] = dict(self._turns)
            waiting.append(request.request)

    def handle_blocked(self, peer: bytes) -> None:
        """Note that a peer does not read: it waits until its next turn, and others do not wait for it."""
        self._blocked.add(peer)
        for key in [key for key in self._at_arrival if key[0] == peer]:
            del self._at_arrival[key]

    def handle_turn(self, peer: bytes, number: int, *, last: bool) -> None:
        """Count a request's turn; earlier requests of its peer that are missing were dropped."""
        self._turns[peer] = self._turns.get(peer, 0) + 1
        self._blocked.discard(peer)
        before = self._at_arrival.pop((peer, number), None)
        if before is not None:
            for other, turns in self._turns.items():
                seen = turns - before.get(other, 0)
                if other != peer and seen > _TURNS_MAX:
                    self.violations.append(f"{self._node}: {seen} turns of another before request {number}")
        waiting = self._waiting.get(peer, [])
        if number in waiting:
            before_it, rest = waiting[: waiting.index(number)], waiting[waiting.index(number) + last :]
            self._waiting[peer] = [one for one in before_it if (peer, one) in self._parked] + rest
        if last:
            self._parked.discard((peer, number))

    def handle_parked(self, peer: bytes, number: int) -> None:
        """Keep the place of a request that waits for a disk; others of its peer may have turns before it."""
        self._parked.add((peer, number))
        self.handle_turn(peer, number, last=False)
