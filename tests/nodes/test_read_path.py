"""Reads: every agent answered once, in frames of bounded size, one bad shard failing its section only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dawnchorus.fragment_stores.engine import FORMAT, Shard, ShardIdentity
from dawnchorus.fragment_stores.image_batch import ImageBatch, ImageList, join_lists
from dawnchorus.fragment_stores.lmdb.store import LMDBStore
from dawnchorus.nodes.read_path import TURN_AGENTS_MAX, Read, require_served
from dawnchorus.nodes.shard_table import OwnedShard
from dawnchorus.wire.errors import InvalidRequestError, StoreCorrupt, StoreError, StoreFull
from dawnchorus.wire.protocol.image import decode_image, select_kinds, version_of
from dawnchorus.wire.protocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_TARGET, REQUEST_AGENTS_MAX, SECTIONS_MAX
from dawnchorus.wire.protocol.messages import (
    ABSENT,
    UNCHANGED,
    Fetch,
    FetchReply,
    FetchSection,
    ImageSection,
    Put,
    SectionStatus,
    Write,
    decode_reply,
)
from tests.support.write_ids import new_write_id

KINDS = frozenset({"session", "context"})

Shards = dict[tuple[str, int], OwnedShard]


def make_shard(directory: Path, shard: int) -> OwnedShard:
    store = LMDBStore(directory / str(shard), ShardIdentity(FORMAT, "ab" * 16, "live", shard, 2, 1), create=True)
    store.begin_generation(1)
    return OwnedShard("live", shard, 1, KINDS, store)


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Shards]:
    """Two shards of a store, to be filled."""
    made = {("live", shard): make_shard(tmp_path, shard) for shard in (0, 1)}
    yield made
    for owned in made.values():
        if owned.fragments is not None:
            owned.fragments.close()


def fill(shards: Shards, values: dict[bytes, bytes], shard: int = 0, kind: str = "session") -> None:
    store = shards["live", shard].fragments
    assert store is not None
    results = store.commit(
        [Write(agent, new_write_id(), 0, [Put(kind, 0, 0, value)]) for agent, value in values.items()], 1, 1
    )
    assert all(isinstance(result, int) for result in results)


def fetch(*sections: tuple[int, list[bytes]], **fields: Any) -> Fetch:
    return Fetch(7, 1, 0, None, [FetchSection("live", shard, 1, agents) for shard, agents in sections], **fields)


def next_frame(read: Read, monotonic_ms: int) -> tuple[bytes, bool]:
    """Return the next frame of a read of which nothing is pending."""
    made = read.next_frame(monotonic_ms)
    assert made is not None
    return made


def frames_of(asked: Fetch, shards: Shards) -> list[FetchReply]:
    """Return all frames of a fetch, as a client sees them."""
    read = Read(asked, shards)
    frames: list[FetchReply] = []
    last = False
    while not last:
        frame, last = next_frame(read, 1_234)
        assert len(frame) <= FRAME_BYTES_MAX
        reply = decode_reply(frame)
        assert isinstance(reply, FetchReply)
        assert (reply.request, reply.now_ms, reply.last) == (asked.request, 1_234, last)
        frames.append(reply)
        assert len(frames) < 10_000
    assert read.agents_read == sum(len(section.sizes) for reply in frames for section in reply.sections)
    return frames


def answers(asked: Fetch, frames: list[FetchReply]) -> list[list[bytes | int]]:
    """Return each section's images, or ABSENT or UNCHANGED, in the order of its agents; each exactly once."""
    found: list[list[bytes | int]] = [[] for _ in asked.sections]
    for reply in frames:
        position = 0
        for section in reply.sections:
            assert section.offset == len(found[section.index])
            for size in section.sizes:
                found[section.index].append(bytes(reply.body[position : position + size]) if size > 0 else size)
                position += max(size, 0)
        assert position == len(reply.body)
    return found


def test_shards_with_other_clocks_get_their_own_frame(shards: Shards) -> None:
    fill(shards, {b"a": b"1"}, shard=0)
    fill(shards, {b"b": b"2"}, shard=1)
    shards["live", 1].offset_ms = 500
    read = Read(fetch((0, [b"a"]), (1, [b"b"]), (1, [b"b"]), (0, [b"a"]), (7, [b"c"])), shards)
    times: list[tuple[int, list[int]]] = []
    last = False
    while not last:
        frame, last = next_frame(read, 1_234)
        reply = decode_reply(frame)
        assert isinstance(reply, FetchReply)
        times.append((reply.now_ms, [section.index for section in reply.sections]))
    assert times == [(1_234, [0, 3, 4]), (1_734, [1, 2])]


def values_of(answered: list[bytes | int], kind: str = "session") -> list[bytes | int]:
    return [decode_image(item)[kind].value if isinstance(item, bytes) else item for item in answered]


def test_images_come_in_the_order_asked_for(shards: Shards) -> None:
    fill(shards, {b"a": b"1", b"b": b"2"})
    fill(shards, {b"c": b"3"}, shard=1)
    asked = fetch((1, [b"c", b"nobody"]), (0, [b"b", b"x", b"a", b"b"]))
    frames = frames_of(asked, shards)
    assert len(frames) == 1
    one, other = answers(asked, frames)
    assert values_of(one) == [b"3", ABSENT]
    assert values_of(other) == [b"2", ABSENT, b"1", b"2"]
    for section, key in zip(frames[0].sections, [("live", 1), ("live", 0)], strict=True):
        store = shards[key].fragments
        assert store is not None
        assert (section.status, section.version) == (SectionStatus.OK, store.version)


def test_a_fetch_of_nothing_is_answered(shards: Shards) -> None:
    [reply] = frames_of(fetch(), shards)
    assert reply.sections == []
    [reply] = frames_of(fetch((0, []), (1, [])), shards)
    assert [(section.index, section.sizes) for section in reply.sections] == [(0, []), (1, [])]


def test_large_fetch_is_cut_into_frames_near_target(shards: Shards) -> None:
    agents = {b"agent-%d" % number: b"%d" % number + bytes(20_000) for number in range(400)}
    fill(shards, agents)
    fill(shards, {b"other": b"o"}, shard=1)
    asked = fetch((0, list(agents)), (1, [b"other"]))
    frames = frames_of(asked, shards)
    assert len(frames) == 8
    assert all(len(reply.body) <= FRAME_BYTES_TARGET for reply in frames)
    assert all(len(reply.body) > FRAME_BYTES_TARGET - 21_000 for reply in frames[:-1])
    first, second = answers(asked, frames)
    assert values_of(first) == list(agents.values())
    assert values_of(second) == [b"o"]


def test_lookups_for_one_frame_are_bounded(shards: Shards) -> None:
    bound = TURN_AGENTS_MAX
    fill(shards, {b"agent-%d" % number: b"v" for number in range(2 * bound + 500)})
    agents = [b"agent-%d" % number for number in range(4 * bound)]
    asked = fetch((0, agents[: bound // 2]), (1, agents[: bound - 100]), (0, agents))
    frames = frames_of(asked, shards)
    assert [sum(len(section.sizes) for section in reply.sections) for reply in frames] == [bound] * 5 + [
        bound // 2 - 100
    ]
    assert [values_of(answered) for answered in answers(asked, frames)] == [
        [b"v"] * (bound // 2),
        [ABSENT] * (bound - 100),
        [b"v"] * (2 * bound + 500) + [ABSENT] * (2 * bound - 500),
    ]


@pytest.mark.parametrize("before", [0, 1, 60])
def test_an_image_larger_than_a_frame_travels_alone(shards: Shards, before: int) -> None:
    small = {b"small-%d" % number: b"s" * 10_000 for number in range(before)}
    for kind in ("session", "context"):
        fill(shards, {b"large": b"%s" % kind.encode() + bytes((1 << 20) - 100)}, kind=kind)
    fill(shards, {**small, b"z": b"z"})
    asked = fetch((0, [*small, b"large", b"large", b"z"]))
    frames = frames_of(asked, shards)
    assert [len(reply.body) > FRAME_BYTES_TARGET for reply in frames] == [False] * bool(before) + [True, True, False]
    assert all(len(reply.sections[0].sizes) == 1 for reply in frames if len(reply.body) > FRAME_BYTES_TARGET)
    [answered] = answers(asked, frames)
    assert values_of(answered)[:before] == list(small.values())
    assert answered[before] == answered[before + 1]
    assert values_of(answered)[-1] == b"z"


def test_a_frame_is_one_moment_of_each_shard(shards: Shards) -> None:
    agents = {b"agent-%d" % number: b"old" + bytes(20_000) for number in range(100)}
    fill(shards, agents)
    read = Read(fetch((0, list(agents))), shards)
    first = decode_reply(next_frame(read, 1)[0])
    fill(shards, dict.fromkeys(agents, b"new"))
    second = decode_reply(next_frame(read, 1)[0])
    assert isinstance(first, FetchReply)
    assert isinstance(second, FetchReply)
    # The second frame says that it is newer: a reader that must not show older data can tell.
    assert second.sections[0].version > first.sections[0].version
    assert second.last
    assert second.sections[0].sizes[0] < 100 < 20_000 < first.sections[0].sizes[0]


def test_images_known_to_the_router_are_not_sent(shards: Shards) -> None:
    fill(shards, {b"a": b"1", b"b": b"2", b"c": b"3"})
    versions = [
        version_of(cast("bytes", item)) for item in answers(*answered(fetch((0, [b"a", b"b", b"c"])), shards))[0]
    ]
    known = [versions[0], versions[1] - 1, 0, 5, 0]
    asked = Fetch(7, 1, 0, None, [FetchSection("live", 0, 1, [b"a", b"b", b"c", b"nobody", b"a"], known)])
    [found] = answers(*answered(asked, shards))
    assert values_of(found) == [UNCHANGED, b"2", b"3", ABSENT, b"1"]


def answered(asked: Fetch, shards: Shards) -> tuple[Fetch, list[FetchReply]]:
    return asked, frames_of(asked, shards)


def test_known_versions_stay_with_their_agents_over_frames(shards: Shards) -> None:
    agents = [b"agent-%02d" % number for number in range(4 * TURN_AGENTS_MAX + 2)]
    fill(shards, dict.fromkeys(agents, b"v"))
    images = cast("list[bytes]", answers(*answered(fetch((0, agents)), shards))[0])
    known = [version_of(image) if number % 3 == 0 else number for number, image in enumerate(images)]
    [found] = answers(*answered(Fetch(7, 1, 0, None, [FetchSection("live", 0, 1, agents, known)]), shards))
    assert values_of(found) == [UNCHANGED if number % 3 == 0 else b"v" for number in range(len(agents))]


@pytest.mark.parametrize("known", [[], [1], [1, 2, 3]])
def test_known_versions_not_matching_agents_are_invalid(shards: Shards, known: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match=f"2 agents and {len(known)} known versions"):
        Read(Fetch(7, 1, 0, None, [FetchSection("live", 0, 1, [b"a", b"b"], known)]), shards)


@pytest.mark.parametrize(
    "kinds", [["session"], ["context", "other"], ["other"], [], ["session", "context"], ["session", "context", "other"]]
)
def test_only_the_kinds_asked_for_are_sent(shards: Shards, kinds: list[str]) -> None:
    fill(shards, {b"a": b"1"}, kind="session")
    fill(shards, {b"a": b"2"}, kind="context")
    complete = cast("bytes", answers(*answered(fetch((0, [b"a"])), shards))[0][0])
    [cut, absent] = answers(*answered(fetch((0, [b"a", b"nobody"]), kinds=kinds), shards))[0]
    assert absent == ABSENT
    assert isinstance(cut, bytes)
    assert cut == select_kinds(complete, kinds)
    assert set(decode_image(cut)) == KINDS & set(kinds)


def test_known_versions_hold_for_images_cut_down_too(shards: Shards) -> None:
    fill(shards, {b"a": b"1"})
    version = version_of(cast("bytes", answers(*answered(fetch((0, [b"a"])), shards))[0][0]))
    asked = Fetch(7, 1, 0, None, [FetchSection("live", 0, 1, [b"a", b"a"], [version, version - 1])], ["context"])
    [found] = answers(*answered(asked, shards))
    assert found[0] == UNCHANGED
    assert decode_image(cast("bytes", found[1])) == {}


class Failing:
    """A shard whose reads fail, and never leave a batch open."""

    def __init__(self, error: StoreError) -> None:
        self.error = error

    def read(self, *_: object) -> ImageBatch:
        raise self.error

    join = staticmethod(join_lists)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreCorrupt("bad"), SectionStatus.CORRUPT),
        (StoreError("odd"), SectionStatus.INTERNAL),
        (StoreFull("full"), SectionStatus.DISK_FULL),
    ],
)
def test_failing_shard_fails_its_section_alone(shards: Shards, error: StoreError, status: SectionStatus) -> None:
    fill(shards, {b"a": b"1"})
    shards["live", 2] = OwnedShard("live", 2, 1, KINDS, cast("Shard", Failing(error)))
    asked = fetch((2, [b"a", b"b"]), (0, [b"a"]), (2, [b"c"]))
    [reply] = frames_of(asked, shards)
    assert [section.status for section in reply.sections] == [status, SectionStatus.OK, status]
    assert values_of(answers(asked, [reply])[1]) == [b"1"]
    del shards["live", 2]


def test_sections_of_unserved_shards_say_so(shards: Shards) -> None:
    fill(shards, {b"a": b"1"})
    shards["live", 3] = OwnedShard("live", 3, 1, KINDS, None, "lost")
    sections = [
        ("live", 9, 1),
        ("other", 0, 1),
        ("live", 0, 2),
        ("live", 0, 0),
        ("live", 3, 1),
        ("live", 3, 2),
        ("live", 0, 1),
    ]
    asked = Fetch(7, 1, 0, None, [FetchSection(store, shard, epoch, [b"a"]) for store, shard, epoch in sections])
    [reply] = frames_of(asked, shards)
    moved, corrupt = SectionStatus.MOVED, SectionStatus.CORRUPT
    assert [section.status for section in reply.sections] == [moved, moved, moved, moved, corrupt, moved, 0]
    assert [section.sizes for section in reply.sections][:-1] == [[]] * 6
    assert [section.index for section in reply.sections] == list(range(7))
    assert values_of(answers(asked, [reply])[6]) == [b"1"]


def test_ownership_of_shard_is_checked_before_its_integrity() -> None:
    assert require_served(None, 1) == SectionStatus.MOVED
    assert require_served(OwnedShard("live", 0, 1, KINDS, None), 2) == SectionStatus.MOVED
    assert require_served(OwnedShard("live", 0, 1, KINDS, None), 1) == SectionStatus.CORRUPT


def test_fetch_beyond_the_limits_is_invalid(shards: Shards) -> None:
    with pytest.raises(InvalidRequestError, match="at most 4096 sections and 65536 agents"):
        Read(fetch(*[(0, list[bytes]())] * (SECTIONS_MAX + 1)), shards)
    with pytest.raises(InvalidRequestError, match="at most 4096 sections and 65536 agents"):
        Read(fetch((0, [b"a"] * REQUEST_AGENTS_MAX), (1, [b"a"])), shards)


def test_fetch_exactly_at_the_limits_is_served(shards: Shards) -> None:
    fill(shards, {b"a": b"1"})
    asked = fetch(*[(0, [b"a"])] * (SECTIONS_MAX - 1), (0, [b"a"] * (REQUEST_AGENTS_MAX - SECTIONS_MAX + 1)))
    found = answers(asked, frames_of(asked, shards))
    assert sum(map(len, found)) == REQUEST_AGENTS_MAX
    assert {item for answered in found for item in answered} == {found[0][0]}


def test_id_outside_limits_is_invalid_and_leaks_nothing(shards: Shards) -> None:
    fill(shards, {b"a": b"1"})
    for _ in range(600):  # an environment has 512 places for readers
        read = Read(fetch((0, [b"a"]), (1, [b"a", b""])), shards)
        with pytest.raises(InvalidRequestError):
            next_frame(read, 1)
    assert values_of(answers(*answered(fetch((0, [b"a"])), shards))[0]) == [b"1"]


def test_corrupt_image_is_sent_unchanged_without_harming_others(shards: Shards) -> None:
    fill(shards, {b"a": b"1"})

    class Corrupt(Failing):
        def read(self, *_: object) -> ImageBatch:
            return ImageList(
                [b"\x00" * 8 + b"no image", b""], 1, frozenset(["session"]), release=lambda: closed.append(None)
            )

    closed: list[None] = []
    shards["live", 2] = OwnedShard("live", 2, 1, KINDS, cast("Shard", Corrupt(StoreError(""))), engine="memory")
    asked = fetch((2, [b"x", b"y"]), (0, [b"a"]), kinds=["session"])
    [corrupt, intact] = answers(*answered(asked, shards))
    assert corrupt == [b"\x00" * 8 + b"no image", ABSENT]
    assert values_of(intact) == [b"1"]
    assert closed == [None]
    del shards["live", 2]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_fetch_is_answered_completely_in_bounded_frames(shards: Shards, data: st.DataObject) -> None:
    size = st.sampled_from([0, 10, 3_000, 200_000, 1 << 20])
    agents = [b"agent-%d" % number for number in range(8)]
    written = data.draw(st.dictionaries(st.sampled_from(agents[:6]), size, max_size=6), label="sizes")
    for shard in (0, 1):
        fill(shards, {agent: bytes([shard]) * length for agent, length in written.items()}, shard)
    wanted = st.tuples(st.integers(0, 2), st.lists(st.sampled_from(agents), max_size=12))
    asked = fetch(*data.draw(st.lists(wanted, max_size=6), label="sections"))
    present = {
        (shard, agent)
        for shard in (0, 1)
        for agent in agents
        if answers(*answered(fetch((shard, [agent])), shards))[0] != [ABSENT]
    }
    frames = frames_of(asked, shards)
    found = answers(asked, frames)
    moved = {section.index for reply in frames for section in reply.sections if section.status}
    for index, section in enumerate(asked.sections):
        if section.shard == 2:
            assert index in moved
            continue
        assert index not in moved
        assert len(found[index]) == len(section.agents)
        for agent, item in zip(section.agents, found[index], strict=True):
            assert isinstance(item, bytes) == ((section.shard, agent) in present)
    for reply in frames:
        bodies = [size for section in reply.sections for size in section.sizes]
        assert sum(bodies) <= FRAME_BYTES_TARGET or len([size for size in bodies if size]) == 1


def test_sections_seen_by_client_name_their_place(shards: Shards) -> None:
    [reply] = frames_of(fetch((0, [b"a"])), shards)
    assert reply.sections == [ImageSection(0, 0, 0, 1 << 40, [ABSENT])]
