"""Images where they lie: what a snapshot found, on its way into a frame without a copy in between."""

from __future__ import annotations

from collections.abc import Sequence

from .lmdb.lookup import Batch, join

__all__ = ["FoundImages", "join_images"]


class FoundImages:
    """Images in the order in which they were asked for, empty where there is none; valid until their snapshot ends."""

    __slots__ = ("batch", "sizes")

    def __init__(self, sizes: list[int], batch: Batch) -> None:
        self.sizes = sizes
        """Bytes of each."""
        self.batch = batch

    @classmethod
    def of(cls, images: list[bytes | memoryview]) -> FoundImages:
        """Return these images as found ones."""
        return cls(list(map(len, images)), images)

    def cut(self, images_max: int) -> None:
        """Keep the first ones only."""
        place_items = len(self.batch) // max(1, len(self.sizes))  # a view is one element, a place some bytes
        self.batch = self.batch[: images_max * place_items]
        del self.sizes[images_max:]


def join_images(head: bytes, found: Sequence[FoundImages]) -> bytes:
    """Return the bytes `head` and, one after another, the images; each is copied once."""
    return join(head, [images.batch for images in found])
