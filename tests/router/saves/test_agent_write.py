"""What became of one agent's save, out of what each store answered: never more certain than it is."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus import (
    DeadlineExceeded,
    Saved,
    SaveError,
    SaveIncomplete,
    SaveIndeterminate,
    SaveInterrupted,
    SaveRejected,
    VersionConflict,
)
from dawnchorus.router.saves.agent_write import AgentWrite, SavedVersions
from dawnchorus.router.saves.write_token import WriteToken
from dawnchorus.wire.protocol.messages import DeleteAgent, DeleteKind, Operation, Put, Rejection, RejectionCode, Write

TOKEN = WriteToken(b"\x01\x02", {"id": 7, "live": 0})
KINDS = {"id": ["profile", "preference"], "live": ["session"]}
OPERATIONS: Mapping[str, list[Operation]] = {"id": [Put("profile", 0, 1, b"v")], "live": [DeleteKind("session")]}

CONFLICT = Rejection("other versions are there", RejectionCode.CONFLICT, {"profile": 4})
REFUSED = Rejection("too large")
INDETERMINATE = Rejection("the log only reaches back to version 9", RejectionCode.INDETERMINATE)
DISK_FULL = "DISK_FULL: no space left on the disk"


def written(**answers: int | Rejection | str | None) -> AgentWrite:
    """A write to two stores that got these answers: of a node, "" for a section rejected as a whole, None for none."""
    write = AgentWrite("a", b"a", TOKEN, OPERATIONS)
    for store, answer in answers.items():
        if isinstance(answer, str):
            write.reject(store, answer, transient=False)
        elif answer is not None:
            write.handle_result(store, answer)
    return write


def outcome(write: AgentWrite) -> Saved | SaveError:
    return write.result(KINDS.__getitem__)


# --- what the caller gets ---


def test_a_save_that_every_store_acknowledged_is_saved() -> None:
    saved = outcome(written(id=5, live=0))
    assert isinstance(saved, Saved)
    assert saved.versions == {"profile": 5, "session": 0}
    assert saved.write_id == str(TOKEN)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"id": None, "live": None}, DeadlineExceeded),
        ({"id": CONFLICT, "live": CONFLICT}, VersionConflict),
        ({"id": REFUSED, "live": DISK_FULL}, SaveRejected),
        ({"id": 5, "live": None}, SaveIncomplete),
        ({"id": 5, "live": CONFLICT}, SaveIncomplete),
        ({"id": 5, "live": REFUSED}, SaveIncomplete),
        ({"id": CONFLICT, "live": None}, SaveIncomplete),
        ({"id": CONFLICT, "live": REFUSED}, SaveIncomplete),
        ({"id": REFUSED, "live": None}, SaveIncomplete),
        ({"id": 5, "live": INDETERMINATE}, SaveIndeterminate),
        ({"id": INDETERMINATE, "live": INDETERMINATE}, SaveIndeterminate),
        ({"id": INDETERMINATE, "live": None}, SaveIndeterminate),
    ],
)
def test_each_mixture_of_answers_is_one_error(
    answers: dict[str, int | Rejection | str | None], kind: type[SaveError]
) -> None:
    error = outcome(written(**answers))
    assert type(error) is kind
    assert isinstance(error, SaveError)
    assert (error.agent_id, error.write_id) == ("a", str(TOKEN))


def test_a_conflict_everywhere_says_everything_that_is_there() -> None:
    other = Rejection("", RejectionCode.CONFLICT, {"session": 0})
    error = outcome(written(id=CONFLICT, live=other))
    assert isinstance(error, VersionConflict)
    assert error.found == {"profile": 4, "session": 0}
    assert "profile 4, session 0" in str(error)


def test_an_incomplete_save_lists_saved_conflicting_rejected_and_unknown() -> None:
    error = outcome(written(id=5, live=CONFLICT))
    assert isinstance(error, SaveIncomplete)
    assert (error.saved, error.conflicting, error.rejected, error.unknown) == ({"profile": 5}, {"profile": 4}, {}, ())
    error = outcome(written(id=DISK_FULL))
    assert isinstance(error, SaveIncomplete)
    assert (error.saved, error.conflicting, error.rejected) == ({}, {}, {"id": DISK_FULL})
    assert error.unknown == ("live",)
    assert all(part in str(error) for part in (f"rejected by id: {DISK_FULL}", "unknown at live"))


def test_a_conflict_that_does_not_say_what_is_there_is_a_rejection() -> None:
    error = outcome(written(id=Rejection("other versions", RejectionCode.CONFLICT), live=REFUSED))
    assert isinstance(error, SaveRejected)
    assert error.rejected == {"id": "other versions", "live": "too large"}


def test_a_rejection_of_a_code_that_is_not_known_yet_is_a_rejection() -> None:
    assert isinstance(outcome(written(id=Rejection("new", 99), live=REFUSED)), SaveRejected)


def test_an_agent_erased_whole_names_every_kind() -> None:
    write = AgentWrite("a", b"a", TOKEN, {"id": [DeleteAgent()], "live": [DeleteAgent()]})
    write.handle_result("id", 5)
    write.handle_result("live", 0)
    saved = outcome(write)
    assert isinstance(saved, Saved)
    assert saved.versions == {"profile": 5, "preference": 5, "session": 0}


answers = st.sampled_from([None, 0, 5, CONFLICT, REFUSED, INDETERMINATE, DISK_FULL])


@given(st.fixed_dictionaries({"id": answers, "live": answers}))
def test_no_outcome_is_more_certain_than_the_answers(given_: dict[str, int | Rejection | str | None]) -> None:
    write = written(**given_)
    result = outcome(write)
    unanswered = {store for store, answer in given_.items() if answer is None}
    assert set(write.unknown) == unanswered
    assert isinstance(result, Saved) == all(isinstance(answer, int) for answer in given_.values())
    if unanswered:
        assert isinstance(result, DeadlineExceeded | SaveIncomplete | SaveIndeterminate)
    if any(isinstance(answer, int) for answer in given_.values()):
        assert not isinstance(result, DeadlineExceeded | SaveRejected | VersionConflict), (
            "nothing was written anywhere?"
        )


# --- sending it, and sending it again ---


def test_a_stores_message_has_its_part_alone() -> None:
    write = AgentWrite("a", b"a", TOKEN, OPERATIONS, {"id": {"profile": 3}})
    assert write.to_message("id", repeated=False) == Write(
        b"a", b"\x01\x02", 7, [Put("profile", 0, 1, b"v")], {"profile": 3}, False
    )
    assert write.to_message("live", repeated=True) == Write(b"a", b"\x01\x02", 0, [DeleteKind("session")], None, True)


def test_a_save_sent_again_keeps_its_name_and_goes_where_it_is_not_known_to_be() -> None:
    first = AgentWrite("a", b"a", TOKEN, OPERATIONS, {"id": {"profile": 3}})
    first.handle_result("id", 5)
    second = first.again()
    assert second.repeated == ("live",)
    assert second.versions == {"id": 5}
    assert second.unknown == ("live",)
    assert second.to_message("live", repeated=False) == Write(b"a", b"\x01\x02", 0, [DeleteKind("session")], None, True)
    second.handle_result("live", 6)
    saved = outcome(second)
    assert isinstance(saved, Saved)
    assert saved.versions == {"profile": 5, "session": 6}
    assert outcome(first) is not saved and first.unknown == ("live",), "the first stays as it was"


def test_what_a_store_rejected_is_asked_again() -> None:
    again = written(id=REFUSED, live=CONFLICT).again()
    assert set(again.unknown) == {"id", "live"}
    assert not again.rejected
    assert not again.conflicts
    assert not again.repeated, "it was not applied: that is no doubt that a repetition could have"


def test_a_rejection_unsent_stays_one_when_tried_again_and_an_unknown_stays_unknown() -> None:
    again = written(id=DISK_FULL).again()
    again.reject("id", DISK_FULL, transient=False)
    again.reject("live", DISK_FULL, transient=False)
    assert again.rejected == {"id": DISK_FULL}
    assert again.unknown == ("live",)
    assert isinstance(outcome(written(id=DISK_FULL, live=DISK_FULL).again()), DeadlineExceeded)
    once_more = written(id=DISK_FULL, live=DISK_FULL).again()
    assert once_more.is_latest
    once_more.reject("id", "nothing was sent", transient=False)
    once_more.reject("live", "nothing was sent", transient=False)
    assert isinstance(outcome(once_more), SaveRejected)


def test_an_error_tried_again_twice_knows_no_more_of_the_first_time() -> None:
    first = written(id=DISK_FULL, live=DISK_FULL)
    second = first.again()
    assert not second.repeated
    third = first.again()
    assert set(third.repeated) == {"id", "live"}, "the second may have been applied"
    second.reject("id", DISK_FULL, transient=False)
    assert not second.rejected, "nor is the second sure, while the third is on its way"
    assert set(second.again().repeated) == {"id", "live"}


def test_a_repeated_write_that_its_node_rejects_was_not_applied_before_either() -> None:
    again = written().again()
    assert set(again.repeated) == {"id", "live"}
    again.handle_result("id", REFUSED)
    again.handle_result("live", CONFLICT)
    assert not again.unknown
    assert not again.again().repeated


# --- deletions ---


def test_a_deletion_says_where_nothing_was() -> None:
    write = AgentWrite(
        "a", b"a", TOKEN, {"id": [Put("profile", 0, 1, b"v"), DeleteKind("preference")], "live": [DeleteAgent()]}
    )
    write.handle_result("id", 5)
    write.handle_result("live", 6)
    saved = outcome(write)
    assert isinstance(saved, Saved)
    assert saved.versions == {"profile": 5, "preference": 5, "session": 6}, "a node that does not say"
    write.handle_removed("id", [])
    write.handle_removed("live", ["session"])
    saved = outcome(write)
    assert isinstance(saved, Saved)
    assert isinstance(saved.versions, SavedVersions)
    assert saved.versions == {"profile": 5, "preference": 0, "session": 6}
    assert saved.versions.deleted == {"preference", "session"}


# --- the end of its cluster ---


def test_a_save_interrupted_says_what_is_known_of_it() -> None:
    closed = "the cluster was closed"
    write = written(id=5)
    error = write.interrupted(KINDS.__getitem__, closed)
    assert isinstance(error, SaveInterrupted)
    assert (error.saved, error.unknown, error.write_id) == ({"profile": 5}, ("live",), str(TOKEN))
    assert written(id=closed, live=closed).interrupted(KINDS.__getitem__, closed) is None, "nothing was sent"
