"""The time that requests lose before they are served, in the sockets and in their peer's queue: pure.

A request says when it was sent, by its sender's monotonic clock, which means nothing here by itself. But the difference
between that and this server's clock when it read the frame from its socket is least if nothing delayed it; by as much
as another request differs more than that, it was late. So a request that a stalled server or a slow network kept for
seconds is known to be seconds old, whatever the clocks show. (The same idea as NTP's clock filter, RFC 5905, 10.)

Then it waits in a queue for its peer's turn. The wait of the last one predicts that of the next one: a request
that has less time than that is better rejected at once (OVERLOADED) than dropped unread in its turn.
"""

from __future__ import annotations

from typing import Final

__all__ = ["QueueWaits", "TransitDelays"]

_MEMORY_S: Final = 60.0
"""The shortest time that a least difference holds, at most twice that: clocks drift apart by 50 us a second or so."""

_RETRY_SHARE: Final = 0.5
"""The share of the wait for which a peer is asked to send nothing: by then half of its queue is done."""


class _Least:
    """The least difference of one peer, of this while and the one before."""

    __slots__ = ("before", "now", "until")

    def __init__(self, difference_s: float, until: float) -> None:
        self.now = self.before = difference_s
        self.until = until


class TransitDelays:
    """The least difference that each peer's clock had to this server's. Times in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._peers: dict[bytes, _Least] = {}

    def queued_s(self, peer: bytes, sent_us: int, drained: float) -> float:
        """Return how long a request was on its way beyond the least time seen; 0 if it does not say. 0.3 us."""
        if not sent_us:
            return 0.0
        difference_s = drained - sent_us / 1e6
        least = self._peers.get(peer)
        if least is None:
            self._peers[peer] = _Least(difference_s, drained + _MEMORY_S)
            return 0.0
        if drained > least.until:
            # A while in which nothing came says nothing of the clocks any more.
            least.before = least.now if drained <= least.until + _MEMORY_S else difference_s
            least.now, least.until = difference_s, drained + _MEMORY_S
        elif difference_s < least.now:
            least.now = difference_s
        return max(0.0, difference_s - min(least.now, least.before))

    def remove_peer(self, peer: bytes) -> None:
        """Forget a peer."""
        self._peers.pop(peer, None)


class QueueWaits:
    """The wait of each peer that has work queued, in seconds."""

    def __init__(self) -> None:
        self._waits_s: dict[bytes, float] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._waits_s

    def handle_taken(self, peer: bytes, waited_s: float, left: int) -> None:
        """Record that a peer's request is served after so long; `left` are still queued."""
        if left:
            self._waits_s[peer] = waited_s
        else:
            self._waits_s.pop(peer, None)

    def retry_after_s(self, peer: bytes, budget_s: float) -> float:
        """Return 0 if a request with this budget may wait, else for how long its peer should send nothing."""
        wait_s = self._waits_s.get(peer, 0.0)
        return wait_s * _RETRY_SHARE if wait_s > budget_s else 0.0

    def remove_peer(self, peer: bytes) -> None:
        """Forget a peer."""
        self._waits_s.pop(peer, None)
