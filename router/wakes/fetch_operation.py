"""One fetch: a plan scattered over the nodes, gathered group by group, and given to a sink.

A fetch does not know its callers: it gives its sink the groups that became complete, and the sink calls `expire` when
the last of its deadlines has come. It promises of each group: every item is the agent's own, and none is older than a
save of that agent which this router has seen acknowledged (see `acknowledged_versions`).

A fetch is under way until its sink ends it, by `end` or `expire`: until then acknowledged saves are noted for it. So a
sink that shows all groups at once can have stale ones read again (`refresh`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import repeat
from typing import Final, Protocol

from ...wire.errors import ProtocolError
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
from .acknowledged_versions import AcknowledgedVersions
from .agent_state import AgentState
from .fetch_plan import GROUP_AGENTS_MAX, plan
from .fetch_results import Group, Part, Place
from .gather import Gather
from .image_sizes import ImageSizes
from .outcomes import Outcome
from .read_spec import ReadSpec
from .wake_context import WakeContext

__all__ = ["FetchOperation", "FetchSink"]

_log = logging.getLogger(__name__)


class FetchSink(Protocol):
    """The receiver of a fetch's groups, which also ends it."""

    def handle_groups(self, fetch: FetchOperation, groups: list[Group]) -> None:
        """Receive groups that are complete now; `fetch.complete` says whether they were the last."""


class _NoSink:
    """The sink of a fetch that has ended."""

    def handle_groups(self, fetch: FetchOperation, groups: list[Group]) -> None:
        pass


_NO_SINK: Final = _NoSink()


class _FetchExchange(Exchange):
    """Some parts of a fetch, at one node."""

    __slots__ = ("_fetch", "_parts")

    def __init__(self, fetch: FetchOperation, parts: list[Part]) -> None:
        required = any([part.store in fetch.spec.needed_stores for part in parts])
        super().__init__(parts[0].node, fetch.deadline, fetch.expect(parts), fetch, required=required)
        self._fetch = fetch
        self._parts = parts

    def encode(self, budget_us: int, sent_us: int) -> bytes:
        parts = self._parts
        if any(part.received for part in parts):
            # Sent before, on a connection that broke: complete parts are not asked for again, others from their start.
            parts = self._parts = [part for part in parts if not part.whole]
            for part in parts:
                part.restart()
        return self._fetch.encode(self.number, budget_us, sent_us, parts)

    def handle_reply(self, reply: Answer) -> bool:
        if not isinstance(reply, FetchReply):
            raise ProtocolError(f"{type(reply).__name__} does not answer a Fetch")
        self._fetch.handle_images(self._parts, reply)
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
        self._fetch.handle_failure(self._parts, outcome)


class FetchOperation:
    """Agents (each once) fetched from the stores of one read spec."""

    def __init__(
        self,
        router: Router,
        acknowledged: AcknowledgedVersions,
        sizes: ImageSizes,
        spec: ReadSpec,
        context: WakeContext,
        ids: Sequence[str],
        agents: Sequence[bytes],
        deadline: float,
        sink: FetchSink,
    ) -> None:
        """Plan it (`Fetcher.fetch`); `start` sends it."""
        self._router = router
        self._acknowledged = acknowledged
        self._sizes = sizes
        self._context = context
        self._sink: FetchSink = sink
        self.spec = spec
        self.deadline = deadline
        per_message = sizes.agents_per_message(spec.routes) if len(agents) > 1 else 1
        self.plan = plan(agents, spec.routes, min(per_message, GROUP_AGENTS_MAX))
        self._gather = Gather(self.plan)
        self._ids = list(map(ids.__getitem__, self.plan.order))
        self._stores = [store.name for store in spec.routes.stores]
        self._exchanges = [_FetchExchange(self, parts) for parts in self.plan.messages(per_message)]
        self._refetches: dict[_Refetch, None] = {}  # in their order, which that of a set would not be
        self._ended = False

    def start(self) -> None:
        """Scatter the requests."""
        self._acknowledged.begin_fetch(self.deadline)
        self._router.submit(self._exchanges)

    @property
    def complete(self) -> bool:
        """Whether every group is."""
        return self._gather.complete

    def catch_up(self) -> None:
        """Receive replies that have come, before a deadline is judged; an error in that is logged only."""
        try:
            self._router.receive()
        except Exception:
            _log.exception("replies could not be received")

    def expire(self) -> None:
        """Give the sink what has come by the last deadline, forget the rest, and end."""
        groups = self._gather.handle_end(self._router.is_up)
        self._withhold_stale(groups)
        sink = self._sink
        self._end(cancel=True)
        if groups:
            sink.handle_groups(self, groups)

    def end(self) -> None:
        """End the fetch: nobody waits any more, or all has come."""
        self._end(cancel=not self._gather.complete)

    def refresh(self) -> int:
        """Read agents again that were saved after they were read; return how many agents the sink gets once more."""
        if not self._acknowledged:
            return 0
        return sum([group.stop - group.start for group in self.plan.groups if self._refetch_stale(group)])

    def withhold_stale(self) -> None:
        """Turn stale images into TIMEOUT in all groups: there is no time left to read them again."""
        self._withhold_stale(self.plan.groups)

    def _withhold_stale(self, groups: Sequence[Group]) -> None:
        if self._acknowledged and not self._ended:
            for group in groups:
                for agent, versions in self._acknowledged_in(group):
                    group.refetched[agent] = group.images_from(agent, versions)

    def states(self, group: Group) -> list[AgentState]:
        """Return the states of a group's agents, in the order of the plan; 0.1 us each."""
        agents = group.stop - group.start
        ids = self._ids[group.start : group.stop]
        return list(map(self._context.state_type, ids, repeat(self._context), repeat(group), range(agents)))

    def state_now(self, position: int) -> AgentState:
        """Return the state at a position whose deadline has come before its group was complete."""
        versions = self._acknowledged.of(self.plan.agents[position], self._stores)
        images = self._gather.images_now(position, versions, self._router.is_up)
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
        return encode(Fetch(number, budget_us, sent_us, None, sections, self.spec.kinds))

    def handle_images(self, parts: list[Part], images: FetchReply) -> None:
        """Receive a reply, and deliver the groups that it completed."""
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
            self._deliver(complete)

    def handle_failure(self, parts: list[Part], outcome: Outcome) -> None:
        """Give up these parts, and deliver the groups that are complete without them."""
        failed = [self._gather.handle_failure(part, outcome) for part in parts]
        self._deliver([group for group in failed if group is not None])

    # --- to the sink ---

    def _deliver(self, groups: list[Group]) -> None:
        if self._acknowledged:
            groups = [group for group in groups if not self._refetch_stale(group)]
        if groups:
            self._sink.handle_groups(self, groups)

    def _refetch_stale(self, group: Group) -> bool:
        """Read stale agents of a group again; return whether the group has to wait for them."""
        stale = [agent for agent, versions in self._acknowledged_in(group) if group.is_older(agent, versions)]
        if not stale or self._ended:
            return False
        self._gather.reopen(group)
        refetch = _Refetch(self, group, stale)
        self._refetches[refetch] = None
        fetch = FetchOperation(
            self._router,
            self._acknowledged,
            self._sizes,
            self.spec,
            self._context,
            [self._ids[group.start + agent] for agent in stale],
            [self.plan.agents[group.start + agent] for agent in stale],
            self.deadline,
            refetch,
        )
        refetch.start(fetch)
        return True

    def handle_refetched(self, refetch: _Refetch, group: Group) -> None:
        """Deliver a group if all its agents that were read again have come."""
        self._refetches.pop(refetch, None)
        if self._gather.settle_again(group):
            self._deliver([group])

    def _acknowledged_in(self, group: Group) -> list[tuple[int, list[int]]]:
        """Return the agents of a group that were saved meanwhile, by number, each with its stores' versions."""
        saved = self._acknowledged.agents
        agents = enumerate(self.plan.agents[group.start : group.stop])
        return [(number, self._acknowledged.of(agent, self._stores)) for number, agent in agents if agent in saved]

    def _end(self, *, cancel: bool) -> None:
        if not self._ended:
            self._ended = True
            for refetch in self._refetches:
                refetch.end()
            self._acknowledged.end_fetch()
            if cancel:
                self._router.cancel(self._exchanges)
            # No reference cycle is left: its replies are freed with the last state that needs them.
            self._exchanges = []
            self._sink = _NO_SINK


class _Refetch:
    """Stale agents of a group that are read again."""

    __slots__ = ("_fetch", "_group", "_parent", "_stale")

    def __init__(self, parent: FetchOperation, group: Group, stale: list[int]) -> None:
        """`stale`: numbers of the agents in their group."""
        self._parent = parent
        self._group = group
        self._stale = stale
        self._fetch: FetchOperation | None = None

    def start(self, fetch: FetchOperation) -> None:
        """Send the fetch of them, of which this is the sink."""
        self._fetch = fetch
        fetch.start()

    def handle_groups(self, fetch: FetchOperation, groups: list[Group]) -> None:
        """Put fresh images in their places."""
        for fresh in groups:
            for place in range(fresh.start, fresh.stop):
                self._group.refetched[self._stale[fetch.plan.order[place]]] = Place(fresh, place - fresh.start)
        if fetch.complete:
            fetch.end()
            self._parent.handle_refetched(self, self._group)

    def end(self) -> None:
        """End its fetch: nobody waits any more."""
        if self._fetch is not None:
            self._fetch.end()
