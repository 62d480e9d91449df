"""The sizes of images, as seen, which give the expected size of a reply."""

from __future__ import annotations

from typing import Final

from ...wire.protocol.limits import FRAME_BYTES_TARGET
from .fetch_plan import MESSAGE_AGENTS_MAX, Routes

__all__ = ["ImageSizes"]

_SIZE_GUESS: Final = 1_024
"""Bytes of an image before any was seen."""

_MESSAGE_BYTES: Final = FRAME_BYTES_TARGET
"""Requests are cut so that a reply has about one frame: 5 % faster than two, one store or three."""


class ImageSizes:
    """The mean size of each store's images, as seen, which gives the expected size of a reply."""

    __slots__ = ("_means",)

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def mean(self, store: str) -> float:
        """Return the mean bytes of an image in a store."""
        return self._means.get(store, _SIZE_GUESS)

    def note(self, store: str, images: int, size: int) -> None:
        """Take note of images that came: how many, and their bytes."""
        if images:
            mean = self._means.get(store)
            # New sizes count a quarter: a changed workload is learned within some ten messages.
            self._means[store] = size / images if mean is None else 0.75 * mean + 0.25 * size / images

    def agents_per_message(self, routes: Routes) -> int:
        """Return how many agents to ask for in one request, so that its reply keeps to the target frame size."""
        # At least one byte: if only agents without images were seen the mean is 0.
        largest = max(1.0, *[self.mean(store.name) for store in routes.stores])
        return max(1, min(MESSAGE_AGENTS_MAX, int(_MESSAGE_BYTES / largest)))
