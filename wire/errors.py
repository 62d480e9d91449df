"""Every exception that dawnchorus raises, and what each asks of its reader.

    DawnchorusError
    |-- ConfigurationError (ValueError)     a person has to change something; a retry never helps
    |   |-- TopologyError                   topology.toml: file, key and permitted values are named
    |   |-- PlacementError                  placement or data contradict the topology, or are corrupt
    |   |-- DataDirectoryError                 a directory that is in use, unwritable, or another cluster's
    |   `-- LaunchError                     a node failed to start
    |-- InvalidRequestError (ValueError)    an id, kind or value outside the limits; nothing was sent
    |-- UnknownKindError (KeyError)         a kind that the topology does not name
    |-- FragmentAbsent (KeyError)           never written, deleted or expired
    |-- FragmentUnavailable (LookupError)   could not be read in time; a new wake may help
    |-- FragmentUndecodable (ValueError)    its bytes do not fit the registered type
    |-- AgentNotFound (LookupError)         no required kind of the agent is there
    |-- WakeIncomplete                      a required kind could not be read; `.state` holds the rest
    |-- SaveError                           `.agent_id` and `.write_id`; `await error.retry()` is safe
    |   |-- SaveRejected                    the nodes rejected it for what it is; nothing was written anywhere
    |   |-- VersionConflict                 other versions are there (`.found`); nothing was written anywhere
    |   |-- SaveIncomplete                  per store: `.saved`, `.conflicting`, `.rejected`, `.unknown`
    |   |   `-- SaveInterrupted (ClusterUnavailable) the same, as the cluster was closed meanwhile
    |   |-- SaveIndeterminate                 repeated too late: the log no longer tells whether it was applied
    |   `-- DeadlineExceeded                no store answered in time: the outcome is unknown
    |-- WrongLoopError (RuntimeError)       a cluster used outside its event loop, thread or process; nothing was sent
    |-- ClusterUnavailable (ConnectionError) no node answered, or the cluster is closed; a retry may help
    |-- PeerFault                           a peer answered with a Fault: `.code`, `.detail`
    |-- ProtocolError                       a frame that is none of ours: the peer's error, or corruption on the way
    `-- StoreError                          a state store failed
        |-- StoreCorrupt                    data that cannot be trusted; never served, never overwritten
        |-- StoreFull                       no space left on the disk or in the map
        |-- EpochMismatch                   writes for another owner of a shard; nothing was done
        |-- LogTrimmed                      a position of the log that it no longer reaches back to
        `-- BackupCorrupt                   a backup that is incomplete or corrupt; nothing was made of it

Third-party exceptions (zmq, lmdb, msgspec) are translated into these once, where that library is called.

Each can be pickled and copied with all its fields, so that it crosses a process boundary as it is; only what is bound
to the connection stays behind, and says so when it is used.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

__all__ = [
    "AgentNotFound",
    "BackupCorrupt",
    "ClusterUnavailable",
    "ConfigurationError",
    "DataDirectoryError",
    "DawnchorusError",
    "DeadlineExceeded",
    "EpochMismatch",
    "FragmentAbsent",
    "FragmentUnavailable",
    "FragmentUndecodable",
    "InvalidRequestError",
    "LaunchError",
    "LogTrimmed",
    "PeerFault",
    "PlacementError",
    "ProtocolError",
    "SaveError",
    "SaveIncomplete",
    "SaveIndeterminate",
    "SaveInterrupted",
    "SaveRejected",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "TopologyError",
    "UnknownKindError",
    "VersionConflict",
    "WakeIncomplete",
    "WrongLoopError",
]

_E = TypeVar("_E", bound="DawnchorusError")


class DawnchorusError(Exception):
    """The base of all errors that dawnchorus raises."""

    _bound: tuple[str, ...] = ()
    """Fields that mean something in this process alone: a copy shares them, a pickle leaves them out."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by the constructor, as exceptions do by themselves: its parameters are not what it passes on as `args`.
        fields = {name: value for name, value in vars(self).items() if name not in self._bound}
        return _rebuild, (type(self), self.args, self._portable(fields))

    def _portable(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields as they may cross a process boundary."""
        return fields

    def __copy__(self) -> Self:
        return _rebuild(type(self), self.args, vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        fields = {
            name: value if name in self._bound else copy.deepcopy(value, memo) for name, value in vars(self).items()
        }
        return _rebuild(type(self), copy.deepcopy(self.args, memo), fields)


def _rebuild(cls: type[_E], args: tuple[Any, ...], fields: Mapping[str, Any]) -> _E:
    """Return an error as it was, without its constructor."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigurationError(DawnchorusError, ValueError):
    """A person has to change a file, a directory or an option; a retry does not help."""


class TopologyError(ConfigurationError):
    """topology.toml is wrong; the message names file, key and the permitted values."""


class PlacementError(ConfigurationError):
    """The placement is lost or corrupt, or contradicts the topology or the data on disk."""


class DataDirectoryError(ConfigurationError):
    """A data directory or endpoint cannot be had: in use by another process, unwritable, of another cluster."""


class LaunchError(ConfigurationError):
    """A node failed to start; the message is the node's own."""


class InvalidRequestError(DawnchorusError, ValueError):
    """An agent id, kind, value or option outside the limits; nothing was sent."""


class _KeyedError(DawnchorusError, KeyError):
    # KeyError shows the repr of its argument; ours is a sentence.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownKindError(_KeyedError):
    """A kind that the topology does not name."""


class FragmentAbsent(_KeyedError):
    """The fragment was never written, was deleted, or has expired."""


class FragmentUnavailable(DawnchorusError, LookupError):
    """The fragment could not be read (see `state.outcome(kind)`), or was not asked for; a new wake may bring it."""


class FragmentUndecodable(DawnchorusError, ValueError):
    """The fragment's bytes do not fit the type registered for its kind; no retry helps."""


class AgentNotFound(DawnchorusError, LookupError):
    """No required kind of the agent is there: never written, or deleted."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"agent {agent_id!r} was not found: none of its required kinds is there (never written, or deleted)"
        )
        self.agent_id = agent_id


class WakeIncomplete(DawnchorusError):
    """A required kind could not be read in time; `state` holds what could. A retry may help.

    In another process, if a value of the state cannot be pickled, `state` is None.
    """

    def __init__(self, state: Any, kinds: tuple[str, ...]) -> None:
        outcomes = ", ".join(f"{kind} {state.outcome(kind).name}" for kind in kinds)
        super().__init__(f"agent {state.agent_id!r}: required kinds could not be read: {outcomes}")
        self.state = state

    def _portable(self, fields: dict[str, Any]) -> dict[str, Any]:
        try:
            pickle.dumps(self.state)
        except Exception:  # any value's own; that this error arrives is worth more
            return {**fields, "state": None}
        return fields


class SaveError(DawnchorusError):
    """A save that was not acknowledged completely.

    `agent_id` is the agent's. `write_id` names the save for good: given to `save` again, also by another process, the
    save is applied at most once.
    """

    _bound = ("repeat",)
    repeat: Callable[[], Any] | None = None
    """Sends it again; of an error that a cluster gave, in the process that it gave it to."""

    def __init__(self, message: str, *, agent_id: str, write_id: str) -> None:
        super().__init__(f"agent {agent_id!r}: {message}")
        self.agent_id = agent_id
        self.write_id = write_id

    def retry(self) -> Any:
        """Send the save again if it is not known to have been applied; return what `save` returns, or raise.

        To be awaited, if `save` was. Safe however often: a node that has applied it answers with the first result.

        Raises:
            WrongLoopError: this error is a copy that came from another process, or was made by hand.
        """
        if self.repeat is None:
            raise WrongLoopError(
                "retry belongs to the cluster object that the save was sent with, and this error was pickled or made by"
                f" hand: save the same again with write_id={self.write_id!r} instead"
            )
        return self.repeat()


class SaveRejected(SaveError):
    """Nothing was written in any store (`rejected`: store -> reason).

    `transient`: the stores among them that may take the same save a moment later; the others reject it for what it is.
    """

    def __init__(
        self, *, agent_id: str, write_id: str, rejected: dict[str, str], transient: tuple[str, ...] = ()
    ) -> None:
        reasons = "; ".join(f"{store}: {reason}" for store, reason in rejected.items())
        super().__init__(f"save rejected: {reasons}", agent_id=agent_id, write_id=write_id)
        self.rejected = rejected
        self.transient = transient


class VersionConflict(SaveError):
    """Nothing was written: other versions are there than expected (`found`: kind -> version, 0 for nothing there)."""

    def __init__(self, *, agent_id: str, write_id: str, found: dict[str, int]) -> None:
        there = ", ".join(f"{kind} {version}" for kind, version in found.items())
        super().__init__(f"version conflict: there are {there}", agent_id=agent_id, write_id=write_id)
        self.found = found


class SaveIncomplete(SaveError):
    """Some stores saved, others did not or may not have.

    `saved`: kind -> version; `conflicting`: kind -> version found, `rejected`: store -> reason, nothing written in
    either, `transient` as in `SaveRejected`; `unknown`: stores that did not answer.
    """

    def __init__(
        self,
        *,
        agent_id: str,
        write_id: str,
        saved: dict[str, int],
        conflicting: dict[str, int] | None = None,
        rejected: dict[str, str],
        unknown: tuple[str, ...],
        transient: tuple[str, ...] = (),
    ) -> None:
        conflicting = conflicting or {}
        parts = [f"applied to {', '.join(saved)}"] if saved else []
        parts += [f"conflicting: there is {kind} {version}" for kind, version in conflicting.items()]
        parts += [f"rejected by {store}: {reason}" for store, reason in rejected.items()]
        parts += [f"unknown at {', '.join(unknown)}"] if unknown else []
        super().__init__("incomplete: " + "; ".join(parts), agent_id=agent_id, write_id=write_id)
        self.saved = saved
        self.conflicting = conflicting
        self.rejected = rejected
        self.unknown = unknown
        self.transient = transient


class SaveIndeterminate(SaveError):
    """A repeated save came too late: a store's log no longer tells whether it was applied. Wake the agent and look."""


class DeadlineExceeded(SaveError, TimeoutError):
    """No store answered the save in time: it may have been written or not."""


class WrongLoopError(DawnchorusError, RuntimeError):
    """A cluster, or something that came from it, was used outside its event loop, thread or process; nothing was sent.

    An error in the program, which no retry fixes.
    """


class ClusterUnavailable(DawnchorusError, ConnectionError):
    """No node of the cluster answered, or this cluster is closed; a retry may help."""


class SaveInterrupted(SaveIncomplete, ClusterUnavailable):
    """The cluster was closed while the save was under way: its fields say what is known of it.

    It may still be applied. Given its `write_id`, another client can repeat it.
    """


class PeerFault(DawnchorusError):
    """A node answered a request as a whole with a Fault (see the codes in `wire.protocol.messages`)."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class ProtocolError(DawnchorusError):
    """A frame that cannot be decoded as the message that it should be."""


class StoreError(DawnchorusError):
    """A state store failed; the message names the file."""


class StoreCorrupt(StoreError):
    """Data on disk is corrupt or contradicts itself; it is neither served nor overwritten."""


class StoreFull(StoreError):
    """No space is left on the disk or in the memory map; a retry helps once there is."""


class EpochMismatch(StoreError):
    """A shard has another epoch than that under which writes were accepted: its owner has changed; nothing was done."""


class LogTrimmed(StoreError):
    """Rows of a shard's log after `position` have gone, up to version `trimmed`; no retry brings them back."""

    def __init__(self, position: int, trimmed: int) -> None:
        super().__init__(f"the log no longer reaches back to version {position}: its rows up to {trimmed} have gone")
        self.position = position
        self.trimmed = trimmed


class BackupCorrupt(StoreError):
    """A backup is incomplete, corrupt, or not one; the message names the file. Nothing was made of it."""
