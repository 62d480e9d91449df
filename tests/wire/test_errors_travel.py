"""Errors that cross a process boundary, or are copied: each keeps all its fields."""

import concurrent.futures
import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from dawnchorus import Outcome, Saved
from dawnchorus.router.saves.write_token import WriteToken
from dawnchorus.wire import errors
from dawnchorus.wire.errors import (
    AgentNotFound,
    DawnchorusError,
    DeadlineExceeded,
    LogTrimmed,
    PeerFault,
    SaveError,
    SaveIncomplete,
    SaveIndeterminate,
    SaveInterrupted,
    SaveRejected,
    VersionConflict,
    WakeIncomplete,
    WrongLoopError,
)
from tests.support.fake_nodes import fake_client


class ShownState:
    """The part of a state that WakeIncomplete asks for."""

    def __init__(self, agent_id: str, value: object = None) -> None:
        self.agent_id = agent_id
        self.value = value

    def outcome(self, _kind: str) -> Outcome:
        return Outcome.TIMEOUT

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShownState) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.agent_id)


NAMED: dict[str, Any] = {"agent_id": "agent-1", "write_id": "00ff.live:1"}
MADE: list[DawnchorusError] = [
    AgentNotFound("agent-1"),
    WakeIncomplete(ShownState("agent-1"), ("profile",)),
    SaveError("no", **NAMED),
    SaveRejected(rejected={"live": "later"}, transient=("live",), **NAMED),
    VersionConflict(found={"context": 3}, **NAMED),
    SaveIncomplete(
        saved={"context": 1}, conflicting={"profile": 2}, rejected={"old": "no"}, unknown=("live",), **NAMED
    ),
    SaveInterrupted(saved={}, conflicting={}, rejected={}, unknown=("live",), **NAMED),
    SaveIndeterminate("late", **NAMED),
    DeadlineExceeded("late", **NAMED),
    PeerFault("BAD_REQUEST", "no such field"),
    LogTrimmed(3, 7),
]
PLAIN = [
    cls(f"{name} says why")
    for name in errors.__all__
    if (cls := getattr(errors, name)) not in {type(error) for error in MADE}
]
ALL = [*MADE, *PLAIN]


def pickled(error: DawnchorusError) -> DawnchorusError:
    made: DawnchorusError = pickle.loads(pickle.dumps(error))
    return made


WAYS: list[Callable[[DawnchorusError], DawnchorusError]] = [pickled, copy.copy, copy.deepcopy]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_every_error_keeps_its_fields(
    error: DawnchorusError, way: Callable[[DawnchorusError], DawnchorusError]
) -> None:
    error.add_note("seen by a test")
    back = way(error)
    assert back is not error
    assert type(back) is type(error)
    assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))


def test_every_public_error_is_tried() -> None:
    assert {type(error).__name__ for error in ALL} == set(errors.__all__)


def test_pickling_incomplete_wake_leaves_out_unpicklable_state() -> None:
    error = WakeIncomplete(ShownState("agent-1", value=lambda: None), ("profile",))
    back = pickled(error)
    assert isinstance(back, WakeIncomplete)
    assert (str(back), back.state) == (str(error), None)
    assert copy.copy(error).state is error.state


def test_copied_error_retries_and_pickled_one_says_where() -> None:
    error = DeadlineExceeded("late", **NAMED)
    error.repeat = lambda: "sent again"
    assert copy.copy(error).retry() == copy.deepcopy(error).retry() == "sent again"
    back = pickled(error)
    assert isinstance(back, DeadlineExceeded)
    with pytest.raises(WrongLoopError, match=r"write_id='00ff\.live:1'"):
        back.retry()


def raise_conflict(_: object) -> None:
    raise VersionConflict(found={"context": 3}, **NAMED)


@pytest.mark.real
def test_process_pool_delivers_error_to_its_parent() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(VersionConflict) as caught:
            pool.submit(raise_conflict, None).result(60)
        assert caught.value.found == {"context": 3}
        assert pool.submit(len, "abc").result(60) == 3, "the pool still serves"


async def test_other_public_types_survive_pickle_and_copy() -> None:
    saved = Saved("agent-1", {"context": 1}, WriteToken(b"\x01", {"live": 2}))
    async with fake_client() as (cluster, _):
        given = [saved, *Outcome, cluster.topology, cluster.placement, *(await cluster.status()).values()]
    for value in given:
        assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == copy.copy(value) == value
    assert pickle.loads(pickle.dumps(saved)).write_id == saved.write_id
