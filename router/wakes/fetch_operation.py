"""One fetch: a plan scattered over the nodes, gathered group by group, and handed to whoever waits.

A fetch knows nothing of who waits: it calls `handle_groups` with groups that became complete, and its owner calls
`expire` when the last of its deadlines has come. What it promises of each group it hands over: every item is the
agent's own, and none is older than a save of that agent which this router has seen acknowledged (see
`acknowledged_versions`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from itertools import repeat
from typing import Final

from ...wire.errors import ProtocolError
from ...wire.protocol.limits import FRAME_BYTES_TARGET
from ...wire.protocol.messages import (
    Answer,
    FaultCode,
    Fetch,
    FetchReply,
    FetchSection,
    SectionStatus,
    encode,
)
from ..dispatch.exchange import Exchange
from ..dispatch.router import Router
from .acknowledged_versions import Floors
from .agent_state import AgentState
from .fetch_plan import GROUP_AGENTS_MAX, MESSAGE_AGENTS_MAX, Routes, plan
from .fetch_results import Group, Part, Place
from .gather import Gather
from .outcomes import Outcome
from .wake_context import WakeContext

__all__ = ["Fetching", "ImageSizes"]

_log = logging.getLogger(__name__)

_SIZE_GUESS: Final = 1_024
"""Bytes of an image before any was seen."""

_MESSAGE_BYTES: Final = FRAME_BYTES_TARGET
"""Requests are cut so that a reply has about one frame: 5 % faster than two, one store or three."""


class ImageSizes:
    """The mean size of a store's images, as seen: what a request is expected to bring."""

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
        """Return how many agents to ask for in one section, so that its reply keeps to the frames meant for it."""
        # At least one byte: where only agents without images were seen the mean is 0.
        largest = max(1.0, *[self.mean(store.name) for store in routes.stores])
        return max(1, min(MESSAGE_AGENTS_MAX, int(_MESSAGE_BYTES / largest)))


class _FetchExchange(Exchange):
    """Some parts of a fetch, at one node."""

    __slots__ = ("_fetching", "_parts")

    def __init__(self, fetching: Fetching, parts: list[Part]) -> None:
        required = any([part.store in fetching.required for part in parts])
        super().__init__(parts[0].node, fetching.deadline, fetching.expect(parts), fetching, required=required)
        self._fetching = fetching
        self._parts = parts

    def encode(self, budget_us: int, sent_us: int) -> bytes:
        parts = self._parts
        if any(part.received for part in parts):
            # Sent before, on a connection that broke: what came whole is not asked for again, the rest from its start.
            parts = self._parts = [part for part in parts if not part.whole]
            for part in parts:
                part.restart()
        return self._fetching.encode(self.number, budget_us, sent_us, parts)

    def handle_reply(self, reply: Answer) -> bool:
        if not isinstance(reply, FetchReply):
            raise ProtocolError(f"{type(reply).__name__} does not answer a Fetch")
        self._fetching.handle_images(self._parts, reply)
        if all([part.whole for part in self._parts]):
            return True
        if reply.last:
            raise ProtocolError("this was said to be all, and some images have not come")
        return False

    def handle_failure(self, code: FaultCode | None, reason: str) -> None:
        if code is None:
            outcome = Outcome.UNAVAILABLE
        else:
            outcome = Outcome.SHED if code == FaultCode.OVERLOADED else Outcome.FAULT
        self._fetching.handle_failure(self._parts, outcome)


class Fetching:
    """Agents (each once) fetched from the stores of some routes."""

    def __init__(
        self,
        router: Router,
        routes: Routes,
        ids: Sequence[str],
        agents: Sequence[bytes],
        *,
        kinds: list[str] | None,
        context: WakeContext,
        deadline: float,
        floors: Floors,
        sizes: ImageSizes,
        handle_groups: Callable[[list[Group]], None],
        required: Collection[int],
        held: bool = False,
    ) -> None:
        """Plan it; `start` sends it. `kinds` is None where all kinds of each store are asked for.

        `required`: numbers of the stores without which an agent is of no use to whoever asks.
        `held`: whoever takes the groups shows none of them before it has the last, calls `refresh` then, and `abandon`
        in the end.
        """
        self._router = router
        self._kinds = kinds
        self._context = context
        self._floors = floors
        self._sizes = sizes
        self._handle_groups = handle_groups
        self._held = held
        self.deadline = deadline
        self.required = required
        per_message = sizes.agents_per_message(routes) if len(agents) > 1 else 1
        self.plan = plan(agents, routes, min(per_message, GROUP_AGENTS_MAX))
        self._gather = Gather(self.plan)
        self._ids = list(map(ids.__getitem__, self.plan.order))
        self._stores = [store.name for store in routes.stores]
        self._exchanges = [_FetchExchange(self, parts) for parts in self.plan.messages(per_message)]
        self._refetches: list[Fetching] = []
        self._ended = False

    def start(self) -> None:
        """Scatter the requests."""
        self._floors.begin_fetch(self.deadline)
        self._router.submit(self._exchanges)

    @property
    def complete(self) -> bool:
        """Whether every group is."""
        return self._gather.complete

    def catch_up(self) -> None:
        """Take in what has come already: call it before a deadline is judged. What breaks in it breaks nothing here."""
        try:
            self._router.receive()
        except Exception:
            _log.exception("replies could not be received")

    def expire(self) -> None:
        """The last deadline has come: hand over what there is, and forget the rest."""
        groups = self._gather.handle_end(self._router.is_up)
        if self._floors and not self._ended:
            for group in self.plan.groups if self._held else groups:
                for agent, floors in self._floors_in(group):
                    group.refetched[agent] = group.images_from(agent, floors)
        handle_groups = self._handle_groups
        self._end(cancel=True)
        if groups:
            handle_groups(groups)

    def abandon(self) -> None:
        """Nobody waits any more."""
        self._end(cancel=True)

    def refresh(self) -> int:
        """Read again what was saved after it was read; return how many agents will be handed over once more for it."""
        if not self._floors:
            return 0
        return sum([group.stop - group.start for group in self.plan.groups if self._refetch_stale(group)])

    def states(self, group: Group) -> list[AgentState]:
        """Return the states of a group's agents, in the order of the plan; 0.1 us each."""
        agents = group.stop - group.start
        ids = self._ids[group.start : group.stop]
        return list(map(self._context.state_type, ids, repeat(self._context), repeat(group), range(agents)))

    def state_now(self, position: int) -> AgentState:
        """Return the state at a position whose deadline has come before its group was complete."""
        floors = self._floors.of(self.plan.agents[position], self._stores)
        images = self._gather.images_now(position, floors, self._router.is_up)
        group = self.plan.group_at(position)
        agent = position - group.start
        state: AgentState = self._context.state_type(
            self._ids[position],
            self._context,
            _images=images,
            _moments=group.moments(agent),
            _clock_offsets_ms=group.clock_offsets_ms(agent),
        )
        return state

    # --- for its exchanges ---

    def expect(self, parts: list[Part]) -> int:
        """Return how many bytes a reply with these parts is expected to have."""
        stores = self.plan.routes.stores
        return int(sum([part.agents * self._sizes.mean(stores[part.store].name) for part in parts]))

    def encode(self, number: int, budget_us: int, sent_us: int, parts: list[Part]) -> bytes:
        """Return the frame that asks for these parts."""
        stores, agents, groups = self.plan.routes.stores, self.plan.agents, self.plan.groups
        sections: list[FetchSection] = []
        for part in parts:
            group = groups[part.group]
            asked = agents[group.start : group.stop]
            sections.append(FetchSection(stores[part.store].name, part.shard, part.epoch, asked))
        return encode(Fetch(number, budget_us, sent_us, None, sections, self._kinds))

    def handle_images(self, parts: list[Part], images: FetchReply) -> None:
        """Take in a reply, and hand over the groups that it completed."""
        complete: list[Group] = []
        try:
            self._gather.handle_images(parts, images, complete)
            for section in images.sections:
                if section.status == SectionStatus.OK:
                    part = parts[section.index]
                    offset_ms = self._context.note_clock(part.store, images.now_ms)
                    part.clock_offset_ms = max(part.clock_offset_ms, offset_ms)
                    self._sizes.note(
                        self.plan.routes.stores[part.store].name, len(section.sizes), len(part.pieces[-1].body)
                    )
        finally:
            self._hand_over(complete)

    def handle_failure(self, parts: list[Part], outcome: Outcome) -> None:
        """Give up these parts, and hand over the groups that are complete without them."""
        failed = [self._gather.handle_failure(part, outcome) for part in parts]
        self._hand_over([group for group in failed if group is not None])

    # --- handing over ---

    def _hand_over(self, groups: list[Group]) -> None:
        if self._floors:
            groups = [group for group in groups if not self._refetch_stale(group)]
        handle_groups = self._handle_groups
        if self._gather.complete and not self._held:
            self._end(cancel=False)
        if groups:
            handle_groups(groups)

    def _refetch_stale(self, group: Group) -> bool:
        """Read again what is older than a save acknowledged meanwhile; return whether the group has to wait for it."""
        stale = [agent for agent, floors in self._floors_in(group) if group.is_older(agent, floors)]
        if not stale or self._ended:
            return False
        self._gather.reopen(group)
        refetch: Fetching

        def take_over(done: list[Group]) -> None:
            for fresh in done:
                for place in range(fresh.start, fresh.stop):
                    group.refetched[stale[refetch.plan.order[place]]] = Place(fresh, place - fresh.start)
            if refetch.complete:
                self._refetches.remove(refetch)
                if self._gather.settle_again(group):
                    self._hand_over([group])

        refetch = Fetching(
            self._router,
            self.plan.routes,
            [self._ids[group.start + agent] for agent in stale],
            [self.plan.agents[group.start + agent] for agent in stale],
            kinds=self._kinds,
            context=self._context,
            deadline=self.deadline,
            floors=self._floors,
            sizes=self._sizes,
            handle_groups=take_over,
            required=self.required,
        )
        self._refetches.append(refetch)
        refetch.start()
        return True

    def _floors_in(self, group: Group) -> list[tuple[int, list[int]]]:
        """Return the agents of a group that were saved meanwhile, by their number, each with its stores' floors."""
        saved = self._floors.agents
        agents = enumerate(self.plan.agents[group.start : group.stop])
        return [(number, self._floors.of(agent, self._stores)) for number, agent in agents if agent in saved]

    def _end(self, *, cancel: bool) -> None:
        if not self._ended:
            self._ended = True
            for refetch in self._refetches:
                refetch.abandon()
            self._floors.end_fetch()
            if cancel:
                self._router.cancel(self._exchanges)
            # Nothing that it points to points back any more: its replies go when the last state that needs them goes.
            self._exchanges = []
            self._handle_groups = _ignore


def _ignore(_groups: list[Group]) -> None:
    """Take the groups of a fetch that nobody waits for."""
