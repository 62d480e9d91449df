"""Planning and gathering of a storm of 10,000: one store of 16 shards on two nodes, and three on three."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dawnchorus.router.wakes.fetch_plan import Plan, Routes, StoreRoute, plan
from dawnchorus.router.wakes.fetch_results import Group, Owner, Part
from dawnchorus.router.wakes.gather import Gather
from dawnchorus.wire.protocol.messages import FetchReply, ImageSection

Timed = Callable[..., Any]
"""The `benchmark` fixture: calls a function many times and returns its result; its own class has no types."""

Reply = tuple[Sequence[Part], FetchReply]


def routes_to(stores: int, nodes: int) -> Routes:
    """Return stores of 16 shards: the shards of one store take turns on the nodes, of several each has its own node."""

    def owner(store: int, shard: int) -> str:
        return f"node {(shard if stores == 1 else store) % nodes}"

    return Routes(
        [
            StoreRoute(f"store {store}", tuple(Owner(owner(store, shard), 1) for shard in range(16)))
            for store in range(stores)
        ]
    )


@pytest.fixture(params=[(1, 2), (3, 3)], ids=["one-store", "three-stores"])
def routes(request: pytest.FixtureRequest) -> Routes:
    """Where the agents are."""
    stores, nodes = request.param
    return routes_to(stores, nodes)


def test_plan_10000_agents(benchmark: Timed, agents: list[bytes], routes: Routes) -> None:
    planned: Plan = benchmark(plan, agents, routes)
    assert sorted(planned.order) == list(range(len(agents)))


def test_plan_one_agent(benchmark: Timed, agents: list[bytes], routes: Routes) -> None:
    assert benchmark(plan, agents[:1], routes).agents == agents[:1]


def test_cut_a_plan_into_messages(benchmark: Timed, agents: list[bytes], routes: Routes) -> None:
    planned = plan(agents, routes)
    messages: list[list[Part]] = benchmark(lambda: list(planned.messages()))
    assert sum(map(len, messages)) == sum(len(group.parts) for group in planned.groups)


def test_gather_10000_agents(benchmark: Any, agents: list[bytes], routes: Routes, all_images: list[bytes]) -> None:
    def prepare() -> tuple[tuple[Plan, list[Reply]], dict[str, object]]:
        planned = plan(agents, routes)
        replies: list[Reply] = []
        for parts in planned.messages():
            sections: list[ImageSection] = []
            bodies: list[bytes] = []
            for index, part in enumerate(parts):
                shown = all_images[: part.agents]
                sections.append(ImageSection(index, 0, 0, 1, [len(image) for image in shown]))
                bodies += shown
            replies.append((parts, FetchReply(1, 0, sections, True, memoryview(b"".join(bodies)))))
        return (planned, replies), {}

    def gather(planned: Plan, replies: list[Reply]) -> Gather:
        gather = Gather(planned)
        complete: list[Group] = []
        for parts, images in replies:
            gather.handle_images(parts, images, complete)
        return gather

    gathered: Gather = benchmark.pedantic(gather, setup=prepare, rounds=50)
    assert gathered.complete
