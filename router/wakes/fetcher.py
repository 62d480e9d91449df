"""The part of a router's wakes that all fetches share: acknowledged versions, image sizes, and repeated wakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..dispatch.router import Router
from .acknowledged_versions import AcknowledgedVersions
from .fetch_operation import FetchOperation, FetchSink
from .image_sizes import ImageSizes
from .read_spec import ReadSpec
from .wake_context import Again, WakeContext

__all__ = ["Fetcher"]


class Fetcher:
    """A maker of fetches."""

    def __init__(self, router: Router, state_type: Callable[..., Any], again: Again) -> None:
        """`state_type` is the type of states; `again` is how they ask for more."""
        self.router = router
        self.clock = router.clock
        """Seconds of the clock that deadlines are of."""
        self.acknowledged = AcknowledgedVersions()
        self.sizes = ImageSizes()
        self._state_type = state_type
        self._again = again

    def fetch(
        self, spec: ReadSpec, ids: Sequence[str], agents: Sequence[bytes], deadline: float, sink: FetchSink
    ) -> FetchOperation:
        """Return the fetch of some agents (`agents` is the UTF-8 of their `ids`), planned and not sent yet.

        Its groups go to `sink`.
        """
        return FetchOperation(
            self.router, self.acknowledged, self.sizes, spec, self.context(spec), ids, agents, deadline, sink
        )

    def context(self, spec: ReadSpec) -> WakeContext:
        """Return the context that the states of one fetch share."""
        return WakeContext(spec.views, len(spec.routes.stores), self._again, self.clock, self._state_type)
