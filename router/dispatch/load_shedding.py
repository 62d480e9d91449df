"""Load shedding, the choice of exchanges to reject at once because waiting would be of no use: pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from ...wire.protocol.status_codes import FaultCode
from .exchange import Exchange
from .node_flow import NodeFlow, Offer

__all__ = ["REJECTIONS", "is_shed_whole", "reject"]

_SHED_WHOLE_PRESSURE: Final = 0.5
"""From here on a required node counts as behind if another is overloaded."""

REJECTIONS: Final[dict[Offer, tuple[FaultCode | None, str]]] = {
    Offer.OPEN: (None, "the node is marked down (its breaker is open)"),
    Offer.FULL: (FaultCode.OVERLOADED, "too much waits for the node already"),
}


def reject(rejected: Iterable[tuple[Exchange, Offer]]) -> None:
    """Notify exchanges that they were not accepted, and why."""
    for exchange, offer in rejected:
        exchange.handle_failure(*REJECTIONS[offer])


def is_shed_whole(exchanges: Collection[Exchange], flows: Sequence[NodeFlow], now: float) -> bool:
    """Return whether a caller that would not get everything had better get nothing.

    One overloaded node costs its fragments. But if the nodes of required kinds are behind as well (all nodes, if
    nothing is required), an incomplete wake takes capacity from them that another needs to be complete: with three
    overloaded nodes that each shed two thirds by themselves, one wake of 27 would be complete.
    """
    pressures = [flow.pressure(exchange, now) for exchange, flow in zip(exchanges, flows, strict=True)]
    if max(pressures) < 1.0:
        return False
    required = [pressure for exchange, pressure in zip(exchanges, pressures, strict=True) if exchange.required]
    return (max(required) if required else min(pressures)) >= _SHED_WHOLE_PRESSURE
