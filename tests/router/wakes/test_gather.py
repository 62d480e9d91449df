"""Gathering, pure: in any order of replies each agent gets its own images, and malformed frames none."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.router.wakes.fetch_plan import Plan, Routes, StoreRoute, plan
from dawnchorus.router.wakes.fetch_results import Group, Owner, Part
from dawnchorus.router.wakes.gather import Gather
from dawnchorus.router.wakes.outcomes import Item, Outcome
from dawnchorus.wire.errors import ProtocolError
from dawnchorus.wire.protocol.messages import FetchReply, SectionStatus, decode_reply
from tests.support.fake_nodes import images_frame

Section = tuple[int, int, int, Sequence[bytes | None]]


def small_plan(agents: int = 4, stores: int = 2, shards: int = 1, group_max: int = 100) -> Plan:
    """Return a plan of some agents of a few stores, each store on a node of its own."""
    routes = Routes([StoreRoute(f"s{n}", tuple(Owner(f"n{n}", 1) for _ in range(shards))) for n in range(stores)])
    return plan([b"agent-%d" % number for number in range(agents)], routes, group_max)


def image(store: int, agent: bytes) -> bytes | None:
    """Return an agent's image in a store: unlike any other, also in length, and None for every fifth agent."""
    digest = sum(agent) + store
    return None if digest % 5 == 0 else (7).to_bytes(8, "big") + agent * (1 + digest % 3) + b"/%d" % store


def images(*sections: Section, last: bool = True, status: int = SectionStatus.OK) -> FetchReply:
    """Return a reply as the router receives it."""
    reply = decode_reply(images_frame(1, sections, last=last, status=status))
    assert isinstance(reply, FetchReply)
    return reply


def asked(planned: Plan, part: Part) -> list[bytes]:
    """Return the agents that a part asks for."""
    group = planned.groups[part.group]
    return planned.agents[group.start : group.stop]


def right(planned: Plan, index: int, part: Part) -> Section:
    """Return the complete answer to a part."""
    return index, 0, 9, [image(part.store, agent) for agent in asked(planned, part)]


def shown(planned: Plan) -> list[tuple[Item, ...]]:
    """Return what every agent of the plan shows."""
    return [group.images(number) for group in planned.groups for number in range(group.stop - group.start)]


def expected(planned: Plan) -> list[tuple[Item, ...]]:
    """Return what every agent shows once all replies have come."""
    return [tuple(image(store, agent) for store in range(len(planned.routes.stores))) for agent in planned.agents]


@given(
    agents=st.integers(1, 30),
    stores=st.integers(1, 3),
    shards=st.integers(1, 3),
    group_max=st.integers(1, 10),
    message_max=st.integers(1, 20),
    seed=st.integers(),
)
def test_replies_in_any_order_give_same_result(
    agents: int, stores: int, shards: int, group_max: int, message_max: int, seed: int
) -> None:
    planned = small_plan(agents, stores, shards, group_max)
    gather = Gather(planned)
    chance = random.Random(seed)
    completed: list[Group] = []
    # Pieces of one part come in order; parts of one message, and messages, in any.
    pieces: list[tuple[list[Part], int, list[Section]]] = []
    for parts in planned.messages(message_max):
        for index, part in enumerate(parts):
            _, _, version, found = right(planned, index, part)
            cuts = sorted(chance.sample(range(1, len(found)), chance.randint(0, len(found) - 1)))
            edges = [0, *cuts, len(found)]
            sections = [(index, a, version, found[a:b]) for a, b in pairwise(edges)]
            pieces.append((parts, index, sections))
    while pieces:
        chosen = chance.choice(pieces)
        parts, _, sections = chosen
        assert not gather.complete
        gather.handle_images(parts, images(sections.pop(0), last=False), completed)
        if not sections:
            pieces.remove(chosen)
    assert gather.complete
    assert shown(planned) == expected(planned)
    assert sorted(map(id, completed)) == sorted(map(id, planned.groups)), "each group completes once"


def test_sections_of_one_message_share_its_body() -> None:
    planned = small_plan(12, stores=1, shards=3)
    parts = [part for group in planned.groups for part in group.parts]
    gather = Gather(planned)
    completed: list[Group] = []
    gather.handle_images(parts, images(*(right(planned, index, part) for index, part in enumerate(parts))), completed)
    assert completed == planned.groups
    assert shown(planned) == expected(planned)


def test_what_has_not_come_shows_as_timeout() -> None:
    planned = small_plan()
    first, second = planned.groups[0].parts
    gather = Gather(planned)
    _, _, version, found = right(planned, 0, first)
    gather.handle_images([first], images((0, 0, version, found[:3]), last=False), [])
    assert [items[0] for items in shown(planned)] == [*found[:3], Outcome.TIMEOUT]
    assert [items[1] for items in shown(planned)] == [Outcome.TIMEOUT] * 4
    assert not gather.complete
    assert not second.whole


NO_IMAGES: list[bytes | None] = []


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ([(1, 0, 9, [b"x"])], "section 1 of 1"),
        ([(0, 1, 9, [b"x"])], "from 1"),
        ([(0, 0, 9, [b"x"] * 5)], "5 images"),
        ([(0, 0, 9, NO_IMAGES)], "0 images"),
        ([(0, 0, 9, [b"x"] * 2), (0, 0, 9, [b"x"] * 2)], "from 0"),
        ([(0, 0, 9, [b"x"] * 2), (0, 3, 9, [b"x"])], "from 3"),
    ],
)
def test_what_was_not_asked_for_is_an_error(sections: list[Section], why: str) -> None:
    planned = small_plan(stores=1)
    completed: list[Group] = []
    with pytest.raises(ProtocolError, match=why):
        Gather(planned).handle_images(planned.groups[0].parts, images(*sections), completed)
    assert completed == []


def test_repeated_reply_is_error_and_completes_nothing_twice() -> None:
    planned = small_plan()
    first, second = planned.groups[0].parts
    gather = Gather(planned)
    completed: list[Group] = []
    whole = images(right(planned, 0, first), last=False)
    gather.handle_images([first], whole, completed)
    for again in (whole, images((0, 4, 9, []), last=False), images((0, 0, 9, []), last=False)):
        with pytest.raises(ProtocolError):
            gather.handle_images([first], again, completed)
    assert completed == []
    assert not gather.complete
    gather.handle_images([second], images(right(planned, 0, second)), completed)
    assert completed == planned.groups
    assert shown(planned) == expected(planned)


def test_negative_size_makes_no_room_for_truncated_image() -> None:
    planned = small_plan(agents=2, stores=1, group_max=1)
    parts = [group.parts[0] for group in planned.groups]
    sound = images((0, 0, 9, [b"x" * 9]))
    sections = [type(sound.sections[0])(index, 0, SectionStatus.OK, 9, [size]) for index, size in enumerate((10, -1))]
    completed: list[Group] = []
    with pytest.raises(ProtocolError, match="unchanged"):
        Gather(planned).handle_images(parts, FetchReply(1, 0, sections, True, sound.body), completed)
    assert completed == [] and not any(part.pieces for part in parts)


@pytest.mark.parametrize("sizes", [[-1, 20], [-1, 21], [21, -1], [10, 20], [1 << 62, 20], [0, 19], [0, 0]])
def test_sizes_not_filling_the_body_show_nothing(sizes: list[int]) -> None:
    planned = small_plan(agents=2, stores=1)
    (part,) = planned.groups[0].parts
    sound = images((0, 0, 9, [b"x" * 10, b"y" * 10]))
    section = type(sound.sections[0])(0, 0, SectionStatus.OK, 9, sizes)
    with pytest.raises(ProtocolError):
        Gather(planned).handle_images([part], FetchReply(1, 0, [section], True, sound.body), [])
    assert shown(planned) == [(Outcome.TIMEOUT,)] * 2


def test_failed_sections_images_never_move_another_sections() -> None:
    planned = small_plan(12, stores=1, shards=2)
    first, second = (group.parts[0] for group in planned.groups)
    sound = images(right(planned, 0, first), right(planned, 1, second))
    failed = type(sound.sections[0])(0, 0, SectionStatus.CORRUPT, 9, sound.sections[0].sizes)
    with pytest.raises(ProtocolError):
        Gather(planned).handle_images(
            [first, second], FetchReply(1, 0, [failed, sound.sections[1]], True, sound.body), []
        )
    assert set(shown(planned)) == {(Outcome.TIMEOUT,)}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (SectionStatus.MOVED, Outcome.UNAVAILABLE),
        (SectionStatus.SEALED, Outcome.UNAVAILABLE),
        (SectionStatus.OVERLOADED, Outcome.SHED),
        (SectionStatus.TOO_LATE, Outcome.TIMEOUT),
        (SectionStatus.CORRUPT, Outcome.FAULT),
        (SectionStatus.INTERNAL, Outcome.FAULT),
        (99, Outcome.FAULT),
    ],
)
def test_failed_section_says_why_and_keeps_received(status: int, outcome: Outcome) -> None:
    planned = small_plan()
    first, second = planned.groups[0].parts
    gather = Gather(planned)
    completed: list[Group] = []
    _, _, version, found = right(planned, 0, first)
    gather.handle_images([first], images((0, 0, version, found[:2]), last=False), completed)
    gather.handle_images([first], images((0, 2, 0, []), status=status), completed)
    gather.handle_images([second], images(right(planned, 0, second)), completed)
    assert [items[0] for items in shown(planned)] == [*found[:2], outcome, outcome]
    assert [items[1] for items in shown(planned)] == [items[1] for items in expected(planned)]
    assert completed == planned.groups


def test_a_part_given_up_takes_nothing_more() -> None:
    planned = small_plan(stores=1)
    (part,) = planned.groups[0].parts
    gather = Gather(planned)
    assert gather.handle_failure(part, Outcome.UNAVAILABLE) is planned.groups[0]
    assert gather.handle_failure(part, Outcome.FAULT) is None
    with pytest.raises(ProtocolError):
        gather.handle_images([part], images(right(planned, 0, part)), [])
    assert shown(planned) == [(Outcome.UNAVAILABLE,)] * 4


def test_end_marks_missing_by_whether_node_is_connected() -> None:
    planned = small_plan(12, stores=2, shards=2)
    gather = Gather(planned)
    done, open_ = planned.groups
    for part in done.parts:
        gather.handle_images([part], images(right(planned, 0, part)), [])
    first = open_.parts[0]
    _, _, version, found = right(planned, 0, first)
    gather.handle_images([first], images((0, 0, version, found[:1]), last=False), [])
    assert gather.handle_end(lambda node: node == "n0") == [open_]
    assert gather.complete
    size = open_.stop - open_.start
    late = [open_.images(number) for number in range(size)]
    assert [items[0] for items in late] == [found[0], *[Outcome.TIMEOUT] * (size - 1)]
    assert [items[1] for items in late] == [Outcome.UNAVAILABLE] * size
    assert [done.images(number) for number in range(done.stop - done.start)] == expected(planned)[: done.stop]
    assert gather.handle_end(lambda _node: True) == []


def test_images_now_names_missing_without_giving_up() -> None:
    planned = small_plan(stores=3)
    gather = Gather(planned)
    first = planned.groups[0].parts[0]
    gather.handle_images([first], images(right(planned, 0, first)), [])
    items = gather.images_now(2, [0, 0, 0], lambda node: node != "n2")
    assert items == (image(0, planned.agents[2]), Outcome.TIMEOUT, Outcome.UNAVAILABLE)
    assert not gather.complete


def test_a_group_opened_again_completes_again() -> None:
    planned = small_plan(stores=1)
    gather = Gather(planned)
    (group,) = planned.groups
    gather.handle_images(group.parts, images(right(planned, 0, group.parts[0])), [])
    gather.reopen(group)
    gather.reopen(group)
    assert not gather.complete
    assert not gather.settle_again(group)
    assert gather.settle_again(group)
    assert gather.complete


def test_a_part_asked_for_again_begins_anew() -> None:
    planned = small_plan(stores=1)
    (part,) = planned.groups[0].parts
    gather = Gather(planned)
    _, _, version, found = right(planned, 0, part)
    gather.handle_images([part], images((0, 0, version, found[:3]), last=False), [])
    part.restart()
    assert shown(planned) == [(Outcome.TIMEOUT,)] * 4
    gather.handle_images([part], images((0, 0, version, found)), [])
    assert shown(planned) == expected(planned)


def test_image_is_older_only_if_snapshot_is_too() -> None:
    planned = small_plan(agents=3, stores=1)
    (group,) = planned.groups
    (part,) = group.parts
    made = [version.to_bytes(8, "big") + b"rest" if version else None for version in (3, 8, 0)]
    Gather(planned).handle_images([part], images((0, 0, 9, made)), [])
    assert [group.is_older(agent, [9]) for agent in range(3)] == [False] * 3, "the snapshot had version 9"
    assert [group.is_older(agent, [10]) for agent in range(3)] == [True] * 3
    assert group.images_from(1, [10]) == [Outcome.TIMEOUT]
    assert group.images_from(1, [9]) == [made[1]]


def test_part_in_pieces_has_oldest_snapshots_age() -> None:
    planned = small_plan(agents=2, stores=1)
    (group,) = planned.groups
    gather = Gather(planned)
    old = (3).to_bytes(8, "big") + b"rest"
    gather.handle_images(group.parts, images((0, 0, 9, [old]), last=False), [])
    gather.handle_images(group.parts, images((0, 1, 12, [old])), [])
    assert group.is_older(0, [11]), "it was read when the shard had version 9"


def test_image_newer_than_its_snapshot_is_not_older() -> None:
    planned = small_plan(agents=1, stores=1)
    (group,) = planned.groups
    image = (12).to_bytes(8, "big") + b"rest"
    Gather(planned).handle_images(group.parts, images((0, 0, 9, [image])), [])
    assert not group.is_older(0, [12]), "a snapshot may be newer than it says, never older"
    assert group.is_older(0, [13])


@pytest.mark.parametrize(
    ("found", "all_begin"),
    [
        ([b"\0" * 8 + b"\x81\xa1p123"] * 3, True),
        ([b"\0" * 8 + b"\x81\xa1p123", b"\0" * 8 + b"\x81\xa1q123"], False),
        ([b"\0" * 8 + b"\x81\xa1p123", None], False),
        ([None, b"\0" * 8 + b"\x81\xa1p123"], False),
        ([b"\0" * 8 + b"\x81", b"\xa1p345678\x81\xa1p123"], False),
    ],
)
def test_part_begins_so_only_if_every_image_does(found: list[bytes | None], all_begin: bool) -> None:
    planned = small_plan(agents=len(found), stores=1)
    (part,) = planned.groups[0].parts
    Gather(planned).handle_images([part], images((0, 0, 9, found)), [])
    assert part.begin_with(b"\xa1p", 9) is all_begin
