"""A cluster in memory, as `load` and `export` see one, and a progress bar that keeps its lines."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from dawnchorus.router.client.kind_registry import Expiring
from dawnchorus.router.wakes.outcomes import Outcome
from dawnchorus.wire.errors import DawnchorusError


class KeptBar:
    """A progress bar that keeps every line that would be printed above it."""

    def __init__(self) -> None:
        self.printed: list[str] = []

    def show(self, text: str, done: float, total: float | None) -> None:
        assert total is None or done <= total

    def print(self, message: str) -> None:
        self.printed.append(message)


class KeptState:
    """An agent as `KeptCluster` gives it."""

    def __init__(
        self, agent_id: str, fragments: Mapping[str, Any], degraded: Sequence[str], times: Mapping[str, datetime]
    ) -> None:
        self.agent_id = agent_id
        self.degraded = tuple(degraded)
        self._fragments = fragments
        self._times = times

    def expires_at(self, kind: str) -> datetime | None:
        return self._times.get(kind)

    def outcome(self, kind: str) -> Outcome:
        if kind in self.degraded:
            return Outcome.TIMEOUT
        return Outcome.OK if kind in self._fragments else Outcome.ABSENT

    def get(self, kind: str, default: Any = None) -> Any:
        return self._fragments.get(kind, default)


class KeptCluster:
    """A cluster that keeps all saves. `fail_save` and `degrade` decide which calls fail."""

    def __init__(
        self,
        *,
        fail_save: Callable[[str, int], DawnchorusError | None] = lambda _agent_id, _call: None,
        degrade: Callable[[str, int], Sequence[str]] = lambda _agent_id, _call: (),
    ) -> None:
        self.agents: dict[str, dict[str, Any]] = {}
        self.times: dict[str, datetime] = {}  # by kind, the same for all
        self.expires_ms: dict[str, dict[str, int]] = {}
        self.save_calls: list[list[str]] = []
        self.wake_calls: list[list[str]] = []
        self._fail_save = fail_save
        self._degrade = degrade

    async def save_many(
        self, agents: Mapping[str, Mapping[str, Any]], *, deadline_s: float | None = None
    ) -> Mapping[str, object]:
        call = len(self.save_calls)
        self.save_calls.append(list(agents))
        results: dict[str, object] = {}
        for agent_id, fragments in agents.items():
            error = self._fail_save(agent_id, call)
            if error is None:
                given = {kind: value for kind, value in fragments.items() if isinstance(value, Expiring)}
                values = {kind: value.value for kind, value in given.items()}
                self.agents.setdefault(agent_id, {}).update({**fragments, **values})
                times = {kind: value.expires_ms for kind, value in given.items()}
                self.expires_ms.setdefault(agent_id, {}).update(times)
            results[agent_id] = error or "saved"
        return results

    async def wake_many(self, ids: Sequence[str], *, deadline_s: float | None = None) -> Sequence[KeptState]:
        call = len(self.wake_calls)
        self.wake_calls.append(list(ids))
        return [KeptState(one, self.agents.get(one, {}), self._degrade(one, call), self.times) for one in ids]
