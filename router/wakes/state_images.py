"""An agent's images as the stores sent them, before a value is looked at.

They begin as a place in a group of agents whose replies came together. The first look takes them out of the replies, as
bytes of their own, and lets go of the group; an image is decoded when a kind of it is first looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec

from ...wire.errors import FragmentUnavailable, ProtocolError, UnknownKindError
from ...wire.protocol.image import Fragment, decode_image, version_of
from .fetch_results import Group
from .fills import Moment
from .outcomes import Item, Outcome
from .wake_context import WakeContext

__all__ = ["AgentImages"]


class AgentImages(msgspec.Struct, gc=False, eq=False, repr_omit_defaults=True):
    """One agent's images, one of each store that was asked, or why there is none."""

    agent_id: str
    _context: WakeContext
    _group: Group | None = None  # where its images are until somebody looks
    _place: int = 0
    _images: tuple[Item, ...] | None = None
    _decoded: dict[int, dict[str, Fragment] | None] | None = None
    _moments: tuple[int, ...] = ()  # by store the shard's version when it was read, where somebody asked for it in time
    _clock_offsets_ms: list[int] | None = None  # of its shards, by store, shared with others of its group

    def detach(self) -> Self:
        """Return this state, owning its bytes: it keeps no reply alive.

        The first look at any kind does the same; a host calls this for states that it keeps and may never look at.
        """
        self._own_images()
        return self

    def is_older(self, floors: Sequence[int]) -> bool:
        """Return whether an image may be older than this version of its store; asked before the first look."""
        return self._group is not None and self._group.is_older(self._place, floors)

    def without_older(self, floors: Sequence[int]) -> Self:
        """Return this state with TIMEOUT in the place of images that may be older than these versions."""
        if self._group is not None:
            self._images = tuple(self._group.images_from(self._place, floors))
            self._clock_offsets_ms = self._group.clock_offsets_ms(self._place)
            self._group = None
        return self

    def _own_images(self) -> tuple[Item, ...]:
        if self._images is None:
            assert self._group is not None, "a state is made with one or the other"
            self._images = self._group.images(self._place)
            self._clock_offsets_ms = self._group.clock_offsets_ms(self._place)
            self._group = None
        return self._images

    def _now_ms(self, store: int) -> int:
        """Return the time of the agent's shard."""
        if self._clock_offsets_ms is None:
            return self._context.now_ms(store)
        return self._clock_offsets_ms[store] + self._context.host_ms()

    def _own_moments(self) -> None:
        """Note the moments of the images, before the group is released."""
        if self._group is not None:
            self._moments = self._group.moments(self._place)

    def _moment_of(self, store: int) -> Moment:
        """Return the moment of a store's image."""
        image = self._own_images()[store]
        return Moment(
            version_of(image) if isinstance(image, bytes) else 0, self._moments[store] if self._moments else 0
        )

    def _stored(self, kind: str, *, living: bool = False) -> tuple[Outcome, Fragment | None]:
        """Return the outcome of a kind, and its stored fragment, expired or not; `living`: only if not expired."""
        view = self._context.kinds.get(kind)
        if view is None:
            known = ", ".join(self._context.kinds)
            raise UnknownKindError(f"there is no kind {kind!r}; the topology has {known}")
        store = view.store
        if store < 0:
            raise FragmentUnavailable(f"agent {self.agent_id!r}: {kind} was not asked for in this wake")
        images = self._images
        if images is None:
            images = self._own_images()
        image = images[store]
        if image is None:
            return Outcome.ABSENT, None
        if isinstance(image, Outcome):
            return image, None
        decoded = self._decoded
        fragments = decoded[store] if decoded is not None and store in decoded else self._fragments(store, image)
        if fragments is None:
            return Outcome.FAULT, None
        fragment = fragments.get(kind)
        if fragment is None:
            return Outcome.ABSENT, None
        if living and fragment.expires_ms and fragment.expires_ms <= self._now_ms(store):
            return Outcome.EXPIRED, None
        return Outcome.OK, fragment

    def _fragments(self, store: int, image: bytes) -> dict[str, Fragment] | None:
        if self._decoded is None:
            self._decoded = {}
        try:
            fragments = decode_image(image)
        except ProtocolError:
            fragments = None
        self._decoded[store] = fragments
        return fragments
