"""The header with which every request begins."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

__all__ = ["REQUEST_FIELD", "Number", "RequestHeader"]

Number = Annotated[int, msgspec.Meta(ge=0)]


class RequestHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The fields that every request has before its own.

    `request` is a number chosen by its sender, new for every request on a connection. `budget_us` is what is left of
    its deadline in microseconds: hosts' clocks differ, so no wall-clock time crosses the wire. The receiver counts it
    from when it read the frame from its socket. `sent_us` is the sender's monotonic clock when it sent the request: it
    means nothing by itself, but a receiver that knows the least that it ever differed from its own clock also knows
    how long a frame was in the sockets between (`wire.transport.queueing_delay`). 0: not said. `trace` is the context
    of the trace that the request belongs to, as its sender's tracer has it; nil: none.
    """

    request: Number
    budget_us: Number
    sent_us: Number
    trace: bytes | None


REQUEST_FIELD: Final = 1 + RequestHeader.__struct_fields__.index("request")
"""The place of the request's number in the array that a request is on the wire: the tag comes first."""
