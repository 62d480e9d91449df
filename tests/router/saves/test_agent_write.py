"""The result of one agent's save, from the answers of its stores: never more certain than they are."""

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
REJECTED = Rejection("too large")
INDETERMINATE = Rejection("the log only reaches back to version 9", RejectionCode.INDETERMINATE)
DISK_FULL = "DISK_FULL: no space left on the disk"


def written(**answers: int | Rejection | str | None) -> AgentWrite:
    """Return a write to two stores with these answers: a result, the reason of a rejected section, or None."""
    write = AgentWrite("a", b"a", TOKEN, OPERATIONS)
    for store, answer in answers.items():
        if isinstance(answer, str):
            write.reject(store, answer, transient=False)
        elif answer is not None:
            write.handle_result(store, answer)
    return write


def outcome(write: AgentWrite) -> Saved | SaveError:
    return write.result(KINDS.__getitem__)


# --- the caller's result ---


def test_save_acknowledged_by_every_store_is_saved() -> None:
    saved = outcome(written(id=5, live=0))
    assert isinstance(saved, Saved)
    assert saved.versions == {"profile": 5, "session": 0}
    assert saved.write_id == str(TOKEN)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"id": None, "live": None}, DeadlineExceeded),
        ({"id": CONFLICT, "live": CONFLICT}, VersionConflict),
        ({"id": REJECTED, "live": DISK_FULL}, SaveRejected),
        ({"id": 5, "live": None}, SaveIncomplete),
        ({"id": 5, "live": CONFLICT}, SaveIncomplete),
        ({"id": 5, "live": REJECTED}, SaveIncomplete),
        ({"id": CONFLICT, "live": None}, SaveIncomplete),
        ({"id": CONFLICT, "live": REJECTED}, SaveIncomplete),
        ({"id": REJECTED, "live": None}, SaveIncomplete),
        ({"id": 5, "live": INDETERMINATE}, SaveIndeterminate),
        ({"id": INDETERMINATE, "live": INDETERMINATE}, SaveIndeterminate),
        ({"id": INDETERMINATE, "live": None}, SaveIndeterminate),
    ],
)
def test_each_mixture_of_answers_gives_one_error(
    answers: dict[str, int | Rejection | str | None], kind: type[SaveError]
) -> None:
    error = outcome(written(**answers))
    assert type(error) is kind
    assert isinstance(error, SaveError)
    assert (error.agent_id, error.write_id) == ("a", str(TOKEN))


def test_conflict_in_every_store_lists_found_versions() -> None:
    other = Rejection("", RejectionCode.CONFLICT, {"session": 0})
    error = outcome(written(id=CONFLICT, live=other))
    assert isinstance(error, VersionConflict)
    assert error.found == {"profile": 4, "session": 0}
    assert "profile 4, session 0" in str(error)


def test_incomplete_save_lists_saved_conflicting_rejected_and_unknown() -> None:
    error = outcome(written(id=5, live=CONFLICT))
    assert isinstance(error, SaveIncomplete)
    assert (error.saved, error.conflicting, error.rejected, error.unknown) == ({"profile": 5}, {"profile": 4}, {}, ())
    error = outcome(written(id=DISK_FULL))
    assert isinstance(error, SaveIncomplete)
    assert (error.saved, error.conflicting, error.rejected) == ({}, {}, {"id": DISK_FULL})
    assert error.unknown == ("live",)
    assert all(part in str(error) for part in (f"rejected by id: {DISK_FULL}", "unknown at live"))


def test_conflict_without_found_versions_is_rejection() -> None:
    error = outcome(written(id=Rejection("other versions", RejectionCode.CONFLICT), live=REJECTED))
    assert isinstance(error, SaveRejected)
    assert error.rejected == {"id": "other versions", "live": "too large"}


def test_rejection_with_unknown_code_is_rejection() -> None:
    assert isinstance(outcome(written(id=Rejection("new", 99), live=REJECTED)), SaveRejected)


def test_deleted_agent_lists_every_kind() -> None:
    write = AgentWrite("a", b"a", TOKEN, {"id": [DeleteAgent()], "live": [DeleteAgent()]})
    write.handle_result("id", 5)
    write.handle_result("live", 0)
    saved = outcome(write)
    assert isinstance(saved, Saved)
    assert saved.versions == {"profile": 5, "preference": 5, "session": 0}


answers = st.sampled_from([None, 0, 5, CONFLICT, REJECTED, INDETERMINATE, DISK_FULL])


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


# --- sending and retrying ---


def test_message_contains_only_operations_of_its_store() -> None:
    write = AgentWrite("a", b"a", TOKEN, OPERATIONS, {"id": {"profile": 3}})
    assert write.to_message("id", repeated=False) == Write(
        b"a", b"\x01\x02", 7, [Put("profile", 0, 1, b"v")], {"profile": 3}, False
    )
    assert write.to_message("live", repeated=True) == Write(b"a", b"\x01\x02", 0, [DeleteKind("session")], None, True)


def test_retried_save_keeps_token_and_skips_acknowledged_stores() -> None:
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


def test_retry_asks_rejecting_stores_again() -> None:
    again = written(id=REJECTED, live=CONFLICT).again()
    assert set(again.unknown) == {"id", "live"}
    assert not again.rejected
    assert not again.conflicts
    assert not again.repeated, "it was not applied: that is no doubt that a repetition could have"


def test_unsent_retry_keeps_rejected_and_unknown_stores() -> None:
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


def test_two_retries_of_one_error_leave_both_uncertain() -> None:
    first = written(id=DISK_FULL, live=DISK_FULL)
    second = first.again()
    assert not second.repeated
    third = first.again()
    assert set(third.repeated) == {"id", "live"}, "the second may have been applied"
    second.reject("id", DISK_FULL, transient=False)
    assert not second.rejected, "nor is the second sure, while the third is on its way"
    assert set(second.again().repeated) == {"id", "live"}


def test_rejected_repeated_write_was_never_applied() -> None:
    again = written().again()
    assert set(again.repeated) == {"id", "live"}
    again.handle_result("id", REJECTED)
    again.handle_result("live", CONFLICT)
    assert not again.unknown
    assert not again.again().repeated


# --- deletions ---


def test_deletion_reports_version_zero_for_absent_kinds() -> None:
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


# --- closing the cluster ---


def test_interrupted_save_reports_known_results() -> None:
    closed = "the cluster was closed"
    write = written(id=5)
    error = write.interrupted(KINDS.__getitem__, closed)
    assert isinstance(error, SaveInterrupted)
    assert (error.saved, error.unknown, error.write_id) == ({"profile": 5}, ("live",), str(TOKEN))
    assert written(id=closed, live=closed).interrupted(KINDS.__getitem__, closed) is None, "nothing was sent"
