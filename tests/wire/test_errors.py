"""The errors: the tree that people read is the tree there is, and each says what it has to."""

import re

import pytest

from dawnchorus.wire import errors
from dawnchorus.wire.errors import (
    AgentNotFound,
    DawnchorusError,
    DeadlineExceeded,
    FragmentAbsent,
    PeerFault,
    SaveIncomplete,
    SaveRejected,
    UnknownKindError,
)

PUBLIC = {name: getattr(errors, name) for name in errors.__all__}


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Return each error of the docstring's drawing, with its parent there and the built-in error beside it."""
    drawing = (errors.__doc__ or "").split("\n\n")[1]
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in drawing.splitlines():
        match = re.fullmatch(r" {4}((?:[|`]--|[| ] {3}| )*)(\w+)(?: \((\w+)\))?(?: .*)?", line)
        assert match is not None, line
        indent, name, builtin = match.groups()
        # The root stands at the margin, its children behind "|-- ", theirs behind "|   |-- ".
        del above[(len(indent) + 1) // 4 :]
        found[name] = (above[-1] if above else None, builtin)
        above.append(name)
    return found


def test_every_error_is_drawn_below_parent() -> None:
    drawn = drawn_tree()
    assert set(drawn) == set(PUBLIC) == {"DawnchorusError", *drawn}
    for name, (parent, builtin) in drawn.items():
        bases = {base.__name__ for base in PUBLIC[name].__mro__[1:]}
        nearest = next((base.__name__ for base in PUBLIC[name].__mro__[1:] if base.__name__ in PUBLIC), None)
        assert nearest == parent, name
        assert builtin is None or builtin in bases, name


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_ours_and_explains_itself(name: str) -> None:
    assert issubclass(PUBLIC[name], DawnchorusError)
    assert PUBLIC[name].__doc__


def test_errors_that_are_key_errors_read_as_sentences() -> None:
    # KeyError itself would show the repr.
    assert str(FragmentAbsent("agent 'a' has no 'session'")) == "agent 'a' has no 'session'"
    assert str(UnknownKindError("no kind 'x'")) == "no kind 'x'"
    assert str(FragmentAbsent()) == ""
    with pytest.raises(KeyError):
        raise FragmentAbsent("x")


def test_errors_name_the_agent_and_the_write() -> None:
    assert "'agent-1'" in str(AgentNotFound("agent-1"))
    rejected = SaveRejected(agent_id="agent-1", write_id="00ff", rejected={"live": "too large", "archive": "corrupt"})
    assert str(rejected) == "agent 'agent-1': save rejected: live: too large; archive: corrupt"
    assert (rejected.agent_id, rejected.write_id) == ("agent-1", "00ff")
    incomplete = SaveIncomplete(
        agent_id="agent-1", write_id="00ff", saved={"session": 5}, rejected={"identity": "no"}, unknown=("archive",)
    )
    assert str(incomplete) == (
        "agent 'agent-1': incomplete: applied to session; rejected by identity: no; unknown at archive"
    )


def test_late_save_is_a_timeout_error() -> None:
    with pytest.raises(TimeoutError):
        raise DeadlineExceeded("no answer", agent_id="a", write_id="00")


def test_fault_shows_code_and_detail() -> None:
    assert str(PeerFault("OVERLOADED", "")) == "OVERLOADED"
    assert str(PeerFault("BAD_REQUEST", "no such field")) == "BAD_REQUEST: no such field"
