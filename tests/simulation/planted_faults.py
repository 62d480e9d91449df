"""Faults to plant in dispatcher, queues and gather: the simulation has to find each of them."""

from collections.abc import Mapping
from typing import Final

from tests.support.from_source import Change

__all__ = ["PLANTED"]

PLANTED: Final[Mapping[str, Change]] = {
    "the window is not given back when a node fails": Change(
        "router/dispatch/node_flow.py",
        """        self._forget(exchange.number)
        self.breaker.handle_failure(now)
""",
        """        self._sent.pop(exchange.number, None)
        self.breaker.handle_failure(now)
""",
    ),
    "a reply to an earlier sending is taken for another request's": Change(
        "router/dispatch/node_flow.py",
        "        return self._sent.get(number)\n",
        "        return self._sent.get(number) or next(iter(self._sent.values()), None)\n",
    ),
    "what a broken connection lost is repeated without a budget": Change(
        "router/dispatch/node_flow.py",
        "exchange.repeatable and exchange.deadline > now and may_repeat()",
        "exchange.repeatable and exchange.deadline > now",
    ),
    "a request for which a connection has no room is lost": Change(
        "router/dispatch/node_flow.py",
        """        exchange.sendings -= 1
        self._waiting.add_first(exchange, now)
""",
        """        exchange.sendings -= 1
""",
    ),
    "a peer has as many turns a round as it has requests": Change(
        "wire/transport/fair_queue.py",
        "        if queue.pieces and not queue.blocked and not queue.takes_turns:\n",
        "        if queue.pieces and not queue.blocked:\n",
    ),
    "a group is complete before its last store has answered": Change(
        "router/wakes/gather.py",
        "        if group.waiting:\n            return False\n",
        "        if group.waiting > 1:\n            return False\n",
    ),
    "a group is not read again though a save was acknowledged meanwhile": Change(
        "router/wakes/fetch_operation.py",
        "        if not stale or self._ended:\n            return False\n",
        "        if stale or self._ended:\n            return False\n",
    ),
}
"""Changes by the fault that each plants."""
