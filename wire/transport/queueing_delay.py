"""The time that requests lay in the sockets between a router and this node: pure.

A request says when it was sent, by its router's monotonic clock, which means nothing here by itself. But the difference
between that and this node's clock when it took the frame off its socket is least where nothing delayed it; what another
request differs more than that, it was late. So a request that a stalled node or a slow network kept for seconds is
known to be seconds old, whatever the clocks show. (The same thought as NTP's clock filter, RFC 5905, section 10.)
"""

from __future__ import annotations

from typing import Final

__all__ = ["Delays"]

_MEMORY_S: Final = 60.0
"""How long a least difference holds at least, and twice that at most: clocks drift apart by 50 us a second or so."""


class _Least:
    """The least difference of one peer, of this while and the one before."""

    __slots__ = ("before", "now", "until")

    def __init__(self, difference_s: float, until: float) -> None:
        self.now = self.before = difference_s
        self.until = until


class Delays:
    """The least difference that each peer's clock had to this node's. Times in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._peers: dict[bytes, _Least] = {}

    def queued_s(self, peer: bytes, sent_us: int, drained: float) -> float:
        """Return how long a request was on its way beyond the least time seen; 0 where it does not say. 0.3 us."""
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
