"""Batches of images on their way into a frame: opaque, for only the engine that made a batch knows where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeAlias

from ..wire.errors import ProtocolError
from ..wire.protocol.image import select_kinds, version_of
from ..wire.protocol.messages import UNCHANGED

__all__ = ["ImageBatch", "ImageList", "PendingBatch", "cut_down", "join_lists"]

_NOTHING = b""


class ImageBatch(Protocol):
    """The images of one read, in the order in which they were asked for; one moment of a shard, valid until `close`.

    The reader that gave it puts it into a frame (`fragment_stores.engine.ShardReader.join`).
    """

    @property
    def sizes(self) -> list[int]:
        """The size of each in a reply: its bytes, 0 if there is none, or UNCHANGED."""
        ...

    @property
    def version(self) -> int:
        """A version that this moment includes; it may include newer ones."""
        ...

    def cut(self, images_max: int) -> None:
        """Keep the first ones only."""
        ...

    def rest_after(self, images: int) -> ImageBatch | None:
        """Return the images after the first ones as a batch that stays valid by itself, independently of this one.

        None if it is better read again. Such a batch need not be closed.
        """
        ...

    def close(self) -> None:
        """Release the resources that keep the images where they are."""
        ...


PendingBatch: TypeAlias = Future[ImageBatch | None]
"""A read that waits for something; done, in any thread, with the batch, with None if reading again will not wait, or
with the error that the read would have raised. The result may never be looked at: it must not hold anything open."""


class ImageList:
    """A batch of images that an engine has in memory: bytes, or views that are valid until `release` was called."""

    __slots__ = ("_release", "images", "sizes", "version")

    def __init__(
        self,
        images: list[bytes | memoryview],
        version: int,
        kinds: frozenset[str] | None = None,
        known: Sequence[int] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Make one of these images, cut down to `kinds` and `known` as in a read."""
        self.images = images
        self.sizes = cut_down(images, kinds, known)
        self.version = version
        self._release = release

    def cut(self, images_max: int) -> None:
        """Keep the first ones only."""
        del self.images[images_max:]
        del self.sizes[images_max:]

    def rest_after(self, images: int) -> ImageList | None:
        """Return the images after the first ones, unless they are views that have to be released."""
        if self._release is not None:
            return None
        rest = ImageList(self.images[images:], self.version)
        rest.sizes = self.sizes[images:]
        return rest

    def close(self) -> None:
        """Call `release`, once."""
        release, self._release = self._release, None
        if release is not None:
            release()


def join_lists(head: bytes, batches: Sequence[ImageBatch]) -> bytes:
    """Return the head and the images of these ImageLists, each copied once, as a reader's `join` does."""
    parts: list[bytes | memoryview] = [head]
    for batch in batches:
        assert isinstance(batch, ImageList), "a frame has batches of one engine"
        parts += batch.images
    return b"".join(parts)


def cut_down(images: list[bytes | memoryview], kinds: frozenset[str] | None, known: Sequence[int] | None) -> list[int]:
    """Reduce images, in place, to these kinds, and to nothing if their version is the known one; return the sizes.

    `kinds` None: all of them; `known` None: no version is known, as 0 for one of them.
    """
    if kinds is not None:
        for index, image in enumerate(images):
            if len(image):
                images[index] = _select(image, kinds)
    sizes = list(map(len, images))
    if known is not None:
        for index, version in enumerate(known):
            if version and sizes[index] and version_of(images[index]) == version:
                images[index], sizes[index] = _NOTHING, UNCHANGED
    return sizes


def _select(image: bytes | memoryview, kinds: frozenset[str]) -> bytes | memoryview:
    try:
        return select_kinds(image, kinds)
    except ProtocolError:
        # Served as it is: the client that decodes it finds it corrupt and shows that for this one agent.
        return image
