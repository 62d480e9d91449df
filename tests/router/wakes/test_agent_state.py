"""An agent's state as its owner sees it: values, versions, and an outcome for everything else."""

import asyncio
import copy
import gc
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from dawnchorus import (
    AgentState,
    FragmentAbsent,
    FragmentUnavailable,
    FragmentUndecodable,
    Outcome,
    UnknownKindError,
)
from dawnchorus.router.wakes.fetch_results import Group, Owner, Part, Piece
from dawnchorus.router.wakes.outcomes import Item
from dawnchorus.router.wakes.wake_context import KindView, WakeContext
from dawnchorus.wire.protocol.image import ENCODING_BYTES, ENCODING_MSGPACK, Fragment, encode_image
from dawnchorus.wire.protocol.messages import Fetch, Request
from dawnchorus.wire.protocol.shard_hash import shard_of
from tests.support.fake_nodes import fake_client, images_frame


class Profile(msgspec.Struct):
    name: str
    age: int = 0


KINDS = {"profile": 0, "preference": 0, "session": 1, "history": 2, "unasked": -1}
FALLBACK = {"language": "en", "tags": ["a"]}


def never_again(agent_id: str, kinds: tuple[str, ...], deadline_s: float | timedelta | None) -> asyncio.Future[Any]:
    """Fail: states made by hand have no cluster to ask again."""
    raise AssertionError(f"{agent_id} is asked for {kinds} again")


def state_of(
    images: Sequence[Item],
    *,
    types: Mapping[str, Any] | None = None,
    fallbacks: Mapping[str, Any] | None = None,
    context: WakeContext | None = None,
) -> AgentState:
    """Return the state of an agent with these images in three stores."""
    views = {
        kind: KindView(
            store,
            msgspec.msgpack.Decoder((types or {}).get(kind, Any)),
            (fallbacks or {}).get(kind, msgspec.UNSET),
        )
        for kind, store in KINDS.items()
    }
    return AgentState("agent", context or WakeContext(views, 3, never_again), _images=tuple(images))


def image(version: int = 5, *, expires_ms: int = 0, encoding: int = ENCODING_MSGPACK, **values: object) -> bytes:
    """Return an image of these kinds; bytes are taken as encoded already."""
    return encode_image(
        version,
        {
            kind: Fragment(
                version + number,
                0,
                encoding,
                0,
                expires_ms,
                value if isinstance(value, bytes) else msgspec.msgpack.encode(value),
            )
            for number, (kind, value) in enumerate(values.items())
        },
    )


def test_value_is_decoded_once_and_kept() -> None:
    state = state_of([image(profile={"name": "Ada"}), None, None])
    first = state["profile"]
    assert first == {"name": "Ada"}
    assert state["profile"] is first
    assert state.get("profile") is first


def test_bytes_come_back_as_they_were_given() -> None:
    raw = b"\x93\x01\x02\x03"
    state = state_of([image(encoding=ENCODING_BYTES, profile=raw), None, None])
    assert state["profile"] == raw


def test_bytes_become_registered_type_or_stay_bytes() -> None:
    images = [image(encoding=ENCODING_BYTES, profile=b"raw", preference=b"raw"), None, None]
    state = state_of(images, types={"profile": bytearray, "preference": Profile})
    assert type(state["profile"]) is bytearray
    assert state["profile"] == state["preference"] == b"raw"


def test_a_registered_type_is_made() -> None:
    state = state_of([image(profile={"name": "Ada", "age": 36}), None, None], types={"profile": Profile})
    assert state["profile"] == Profile("Ada", 36)


def test_nothing_is_decoded_before_it_is_looked_at() -> None:
    looked: list[str] = []

    class Counting(msgspec.Struct):
        name: str

        def __post_init__(self) -> None:
            looked.append(self.name)

    state = state_of(
        [image(profile={"name": "p"}, preference={"name": "q"}), None, None],
        types={"profile": Counting, "preference": Counting},
    )
    assert state.outcome("profile") is Outcome.OK
    assert state.version("preference") == 6
    assert state.complete
    assert looked == []
    assert state["profile"].name == "p"
    assert state["profile"].name == "p"
    assert looked == ["p"]


@pytest.mark.parametrize(
    "encoded",
    [b"", b"\xc1", b"\x81\xa1a", msgspec.msgpack.encode({"name": 5}), b"\x81\xa4name\xa1\xff", b"\x91" * 5000],
)
def test_bytes_not_fitting_type_are_undecodable_but_present(encoded: bytes) -> None:
    state = state_of([image(profile=encoded), None, None], types={"profile": Profile})
    for _ in range(2):
        with pytest.raises(FragmentUndecodable, match="agent 'agent': profile"):
            state["profile"]
    with pytest.raises(ValueError, match="profile"):
        state.get("profile")
    assert state.outcome("profile") is Outcome.OK
    assert state.version("profile") == 5
    assert state.complete


def test_invalid_utf8_is_undecodable_even_without_type() -> None:
    state = state_of([image(profile=b"\xa1\xff"), None, None])
    with pytest.raises(FragmentUndecodable):
        state["profile"]


def test_an_encoding_of_a_later_version_is_undecodable() -> None:
    state = state_of([image(encoding=2, profile={"name": "Ada"}), None, None])
    with pytest.raises(FragmentUndecodable, match="encoding 2"):
        state["profile"]


@pytest.mark.parametrize(
    "corrupt", [b"short", b"\0" * 8, b"\0" * 8 + b"\xc1", b"\0" * 8 + b"\x81\xa1\xff\x01", b"x" * 50]
)
def test_corrupt_image_is_fault_of_all_its_kinds(corrupt: bytes) -> None:
    state = state_of([corrupt, image(session=1), None])
    assert state.outcome("profile") is state.outcome("preference") is Outcome.FAULT
    assert state["session"] == 1
    assert state.degraded == ("profile", "preference")
    with pytest.raises(FragmentUnavailable, match="FAULT"):
        state["profile"]
    with pytest.raises(FragmentUnavailable):
        state.version("profile")


def test_torn_image_is_fault_wherever_torn() -> None:
    whole = image(profile={"name": "Ada"}, preference={"language": "de"})
    for length in range(len(whole)):
        assert state_of([whole[:length] or b"\0", None, None]).outcome("profile") is Outcome.FAULT


def test_degraded_kind_shows_fallback_and_says_why() -> None:
    state = state_of([Outcome.TIMEOUT, None, None], fallbacks={"preference": FALLBACK})
    assert state["preference"] == FALLBACK
    assert state.get("preference") == FALLBACK
    assert state.outcome("preference") is Outcome.TIMEOUT
    assert not state.complete
    assert state.degraded == ("profile", "preference")
    with pytest.raises(FragmentUnavailable):
        state.version("preference")
    assert "preference" not in state


def test_absent_kind_shows_no_fallback() -> None:
    state = state_of([None, None, None], fallbacks={"preference": FALLBACK})
    with pytest.raises(FragmentAbsent):
        state["preference"]
    assert state.get("preference", "default") == "default"


def test_each_state_has_a_fallback_of_its_own() -> None:
    before = copy.deepcopy(FALLBACK)
    first = state_of([Outcome.TIMEOUT, None, None], fallbacks={"preference": FALLBACK})
    second = state_of([Outcome.TIMEOUT, None, None], fallbacks={"preference": FALLBACK})
    first["preference"]["tags"].append("changed")
    assert first["preference"]["tags"] == ["a", "changed"]
    assert second["preference"] == FALLBACK == before


@pytest.mark.parametrize("fallback", [None, 0, "", [], False])
def test_an_empty_fallback_is_one(fallback: object) -> None:
    state = state_of([Outcome.UNAVAILABLE, None, None], fallbacks={"preference": fallback})
    assert state["preference"] == fallback


def test_absent_raises_key_error_unavailable_lookup_error() -> None:
    state = state_of([image(profile=1), None, Outcome.SHED])
    with pytest.raises(FragmentAbsent) as absent:
        state["session"]
    assert isinstance(absent.value, KeyError)
    assert str(absent.value) == "agent 'agent': session is absent"
    with pytest.raises(FragmentAbsent):
        state["preference"]  # its store has an image, with another kind
    with pytest.raises(FragmentUnavailable, match="SHED") as unavailable:
        state["history"]
    assert isinstance(unavailable.value, LookupError)
    assert not isinstance(unavailable.value, KeyError)


def test_get_gives_the_default_for_absent_only() -> None:
    state = state_of([None, Outcome.TIMEOUT, None])
    assert state.get("profile") is None
    assert state.get("profile", 7) == 7
    with pytest.raises(FragmentUnavailable):
        state.get("session", 7)


def test_unrequested_kind_is_unavailable_but_not_degraded() -> None:
    state = state_of([image(profile=1), None, None])
    for look in (state.outcome, state.version, state.get, state.__getitem__):
        with pytest.raises(FragmentUnavailable, match="not asked for"):
            look("unasked")
    assert state.complete
    assert "unasked" not in repr(state)


def test_unknown_kind_is_named_with_known_ones() -> None:
    state = state_of([None, None, None])
    for look in (state.outcome, state.version, state.get, state.__getitem__):
        with pytest.raises(UnknownKindError, match=r"'nonsense'.*profile, preference, session"):
            look("nonsense")
    assert "nonsense" not in state


def test_version_is_fragments_own_or_0_without_one() -> None:
    state = state_of([image(5, profile=1, preference=2), None, Outcome.FAULT])
    assert state.version("profile") == 5
    assert state.version("preference") == 6
    assert state.version("session") == 0
    with pytest.raises(FragmentUnavailable):
        state.version("history")


def test_expiry_counts_nodes_clock_plus_hosts_time_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic_ms = 50_000
    monkeypatch.setattr("time.monotonic", lambda: monotonic_ms / 1_000)
    context = state_of([])._context  # pyright: ignore[reportPrivateUsage]
    context.note_clock(1, 1_000_000)
    made = image(session=1, expires_ms=1_000_500)
    assert state_of([None, made, None], context=context).outcome("session") is Outcome.OK
    monotonic_ms += 499
    assert state_of([None, made, None], context=context).outcome("session") is Outcome.OK
    monotonic_ms += 1
    state = state_of([None, made, None], context=context)
    assert state.outcome("session") is Outcome.EXPIRED
    assert state.version("session") == 0
    assert state.get("session", "default") == "default"
    assert state.complete
    with pytest.raises(FragmentAbsent, match="session is expired"):
        state["session"]


def test_expires_at_is_time_of_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    state = state_of([image(profile=1, preference=2), image(session=1, expires_ms=1_767_323_045_678), Outcome.TIMEOUT])
    assert state.expires_at("session") == datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    assert state.expires_at("profile") is None
    assert state_of([None, None, None]).expires_at("profile") is None, "there is none"
    with pytest.raises(FragmentUnavailable, match="TIMEOUT"):
        state.expires_at("history")
    with pytest.raises(UnknownKindError):
        state.expires_at("nonsense")
    assert state_of([None, image(session=1, expires_ms=1), None]).expires_at("session") is not None, "by the clock: 0"
    corrupt = state_of([None, image(session=1, expires_ms=1 << 62), None])
    assert corrupt.expires_at("session") == datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)


def test_the_furthest_clock_of_a_stores_nodes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    context = state_of([])._context  # pyright: ignore[reportPrivateUsage]
    context.note_clock(1, 2_000)
    context.note_clock(1, 1_000)
    assert context.now_ms(1) == 2_000
    assert context.now_ms(0) == 0, "stores have clocks of their own"


def test_agent_expires_by_clock_of_own_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.007)
    context = state_of([])._context  # pyright: ignore[reportPrivateUsage]
    made = image(session=1, expires_ms=1_500)
    outcomes: list[Outcome] = []
    context.note_clock(1, 2_000)
    for now_ms in (1_000, 2_000):
        group = Group(0, 1)
        for store in range(3):
            part = Part(0, 1, store, 0, Owner("one", 1))
            part.pieces.append(Piece(0, [len(made)], memoryview(made), 0))
            part.received = 1
            group.parts.append(part)
        group.parts[1].clock_offset_ms = context.note_clock(1, now_ms)
        outcomes.append(AgentState("agent", context, group).outcome("session"))
    assert outcomes == [Outcome.OK, Outcome.EXPIRED]


async def test_wake_ended_by_deadline_uses_own_shards_clock() -> None:
    agents = ["agent-0", "agent-1"]
    assert len({shard_of(agent_id.encode(), 2) for agent_id in agents}) == 2
    expires_ms = 1 << 41
    async with fake_client() as (cluster, nodes):
        nodes["old"].hold.add(Fetch)  # so that each wake ends at its deadline
        for agent_id in agents:
            nodes.put(agent_id, profile=1)
            nodes["live"].images["live", agent_id.encode()] = image(session=1, expires_ms=expires_ms)

        def answer(request: Request) -> list[bytes]:
            """Move the clock of each shard by an offset of its own."""
            if not isinstance(request, Fetch):
                return nodes["live"].serve(request)
            frames: list[bytes] = []
            for index, section in enumerate(request.sections):
                images = [nodes["live"].images.get(("live", agent)) for agent in section.agents]
                now_ms = expires_ms + (-1_000_000 if b"agent-0" in section.agents else 1_000_000)
                last = index + 1 == len(request.sections)
                frames.append(images_frame(request.request, [(index, 0, 1, images)], last=last, now_ms=now_ms))
            return frames

        nodes["live"].answer = answer
        waking = [cluster.wake(agent_id, deadline_s=0.3) for agent_id in agents]
        longer = cluster.wake("agent-2", deadline_s=60)
        states = await asyncio.gather(*waking)
        assert [state.outcome("session") for state in states] == [Outcome.OK, Outcome.EXPIRED]
        assert [state.outcome("history") for state in states] == [Outcome.TIMEOUT] * 2
        longer.cancel()


async def test_fragment_reported_expired_by_node_is_expired() -> None:
    async with fake_client() as (cluster, nodes):
        nodes.put("a", profile=1)
        nodes["live"].images["live", b"a"] = image(session=1, expires_ms=1)
        nodes["old"].images["old", b"a"] = image(history=1, expires_ms=1 << 60)
        state = await cluster.wake("a")
        assert state.outcome("session") is Outcome.EXPIRED
        assert state["history"] == 1
        assert state.complete


async def test_agent_with_expired_required_kind_was_written() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].images["id", b"a"] = image(profile=1, expires_ms=1)
        assert (await cluster.wake("a")).outcome("profile") is Outcome.EXPIRED


def test_repr_shows_each_kinds_outcome_and_no_value() -> None:
    state = state_of([image(profile="secret"), Outcome.TIMEOUT, None])
    assert repr(state) == "AgentState('agent', profile=OK, preference=ABSENT, session=TIMEOUT, history=ABSENT)"


async def test_a_detached_state_keeps_no_reply_alive() -> None:
    async with fake_client() as (cluster, nodes):
        for number in range(20):
            nodes.put(f"agent-{number}", profile=number)
        states = await cluster.wake_many([f"agent-{number}" for number in range(20)])
        group = states[0]._group  # pyright: ignore[reportPrivateUsage]
        assert group is not None
        kept = [state.detach() for state in states[:1]]
        body = group.parts[0].pieces[0].body
        del group
        assert sys.getrefcount(body) > 2
        del states
        gc.collect()
        assert sys.getrefcount(body) == 2, "nobody but this test holds the reply"
        assert kept[0]["profile"] == 0
        assert kept[0].detach() is kept[0]
