"""Fetch plans, which agents are asked of which node: properties over any ids, stores, shard counts and limits."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.router.wakes.fetch_plan import Plan, Routes, StoreRoute, plan
from dawnchorus.router.wakes.fetch_results import Owner, Part
from dawnchorus.wire.cluster.placement import initial_placement
from dawnchorus.wire.cluster.topology import KindSpec, NodeSpec, StoreSpec, Topology
from dawnchorus.wire.protocol.shard_hash import shard_of

ids = st.lists(st.text(min_size=1, max_size=12).map(lambda text: text.encode()), unique=True, max_size=80)


@st.composite
def routes(draw: st.DrawFn) -> Routes:
    """Draw one to four stores of one to six shards each, on up to four nodes."""
    nodes = st.sampled_from(["a", "b", "c", "d"])
    stores: list[StoreRoute] = []
    for number in range(draw(st.integers(1, 4))):
        owners = draw(st.lists(nodes, min_size=1, max_size=6))
        stores.append(StoreRoute(f"store{number}", tuple(Owner(node, epoch + 1) for epoch, node in enumerate(owners))))
    return Routes(stores)


def agents_of(planned: Plan, part: Part) -> list[bytes]:
    """Return the agents that a part asks for."""
    group = planned.groups[part.group]
    return planned.agents[group.start : group.stop]


@given(agents=ids, routes=routes(), group_max=st.integers(1, 20))
def test_every_agent_is_in_exactly_one_group(agents: list[bytes], routes: Routes, group_max: int) -> None:
    planned = plan(agents, routes, group_max)
    positions = [position for group in planned.groups for position in range(group.start, group.stop)]
    assert positions == list(range(len(agents)))
    assert all(0 < group.stop - group.start <= group_max for group in planned.groups)
    assert all(
        planned.group_at(position) is group for group in planned.groups for position in range(group.start, group.stop)
    )


@given(agents=ids, routes=routes())
def test_plan_order_restores_every_agents_place(agents: list[bytes], routes: Routes) -> None:
    planned = plan(agents, routes)
    assert sorted(planned.order) == list(range(len(agents)))
    assert [agents[index] for index in planned.order] == planned.agents


@given(agents=ids, routes=routes(), group_max=st.integers(1, 20))
def test_every_store_is_asked_at_shards_owner(agents: list[bytes], routes: Routes, group_max: int) -> None:
    planned = plan(agents, routes, group_max)
    asked = Counter[tuple[int, bytes]]()
    for group in planned.groups:
        assert [part.store for part in group.parts] == list(range(len(routes.stores)))
        assert group.waiting == len(group.parts)
        for part in group.parts:
            owners = routes.stores[part.store].owners
            assert (part.node, part.epoch) == owners[part.shard]
            assert part.agents == group.stop - group.start
            for agent in agents_of(planned, part):
                assert shard_of(agent, len(owners)) == part.shard
                asked[part.store, agent] += 1
    assert asked == {(store, agent): 1 for store in range(len(routes.stores)) for agent in agents}


@given(agents=ids, routes=routes(), group_max=st.integers(1, 20), message_max=st.integers(1, 40))
def test_messages_carry_every_part_once_within_limit(
    agents: list[bytes], routes: Routes, group_max: int, message_max: int
) -> None:
    planned = plan(agents, routes, group_max)
    messages = list(planned.messages(message_max))
    parts = [id(part) for message in messages for part in message]
    assert sorted(parts) == sorted(id(part) for group in planned.groups for part in group.parts)
    for message in messages:
        assert len({part.node for part in message}) == 1
        # One part alone may be larger: a section is not cut again.
        assert len(message) == 1 or sum(part.agents for part in message) <= message_max


@given(agents=ids, routes=routes(), group_max=st.integers(1, 5), message_max=st.integers(1, 10))
def test_messages_go_round_robin_over_the_nodes(
    agents: list[bytes], routes: Routes, group_max: int, message_max: int
) -> None:
    nodes = [message[0].node for message in plan(agents, routes, group_max).messages(message_max)]
    turns = Counter[str]()
    turn_of: list[int] = []
    for node in nodes:
        turn_of.append(turns[node])
        turns[node] += 1
    assert turn_of == sorted(turn_of), "a node had its next turn before another that still had work"


def test_slots_are_least_common_multiple_of_shard_counts() -> None:
    stores = [StoreRoute(str(count), tuple(Owner("n", 1) for _ in range(count))) for count in (4, 6, 1)]
    assert Routes(stores).slots == 12


def test_routes_of_placement_name_owners_and_epochs() -> None:
    topology = Topology(
        "t",
        stores={"one": StoreSpec(shards=3), "other": StoreSpec(shards=2)},
        kinds={"a": KindSpec("one"), "b": KindSpec("other")},
        nodes={name: NodeSpec(name, f"tcp://h:{port}", ("one", "other")) for port, name in enumerate("xy", 1)},
    )
    routes = Routes.of(initial_placement(topology, "0" * 32), ["other", "one"])
    assert [store.name for store in routes.stores] == ["other", "one"]
    assert [owner.node for owner in routes.stores[1].owners] == ["x", "y", "x"]


@pytest.mark.parametrize("count", [0, 1])
def test_plan_of_none_or_one_is_ordinary(count: int) -> None:
    routes = Routes([StoreRoute("s", (Owner("n", 1),))])
    planned = plan([b"agent"][:count], routes)
    assert len(list(planned.messages())) == len(planned.groups) == count
