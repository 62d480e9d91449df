"""The history of a simulation: all values written, acknowledged and shown, and the violations among them.

Each value names its agent, its kind, and its number among the values of that kind. Each agent is saved by one client,
so its values have one order.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from dawnchorus import AgentState, Outcome

__all__ = ["KINDS", "Asked", "History"]

KINDS: Final = ("profile", "session", "history")
"""Kinds of agents, each of a store of its own; the first is required."""

GRACE_S: Final = 0.02
"""How long after its deadline a call ends at the latest (docs/resilience.md); nothing stalls in virtual time, so it is
that of timers."""

LARGE_KIND: Final = "history"
"""A kind of which some values are large: a wake of all agents has several frames of them."""

_TIMER_SLACK_S: Final = 0.001

Key = tuple[str, str]


class Asked(NamedTuple):
    """A call under way, and the least that it has to show."""

    what: str
    client: int
    began: float
    deadline: float
    at_least: Mapping[Key, int]


class History:
    """Values by agent and kind, and the events of a run."""

    def __init__(self) -> None:
        self._issued: dict[Key, int] = {}
        self._acknowledged: dict[Key, int] = {}
        self._acknowledged_to: dict[tuple[int, Key], list[tuple[float, int]]] = {}
        self.wrong: list[str] = []
        self.trace: list[str] = []

    def note(self, now: float, event: str) -> None:
        """Take note of an event."""
        self.trace.append(f"{now:.9f} {event}")

    # --- saves ---

    def next_value(self, agent_id: str, kind: str) -> list[object]:
        """Return the next value to save."""
        key = agent_id, kind
        self._issued[key] = self._issued.get(key, 0) + 1
        padding = ["x" * 60_000] if kind == LARGE_KIND and self._issued[key] % 4 == 0 else []
        return [agent_id, kind, self._issued[key], *padding]

    def handle_acknowledged(
        self, now: float, client: int, agent_id: str, values: Mapping[str, Sequence[object]]
    ) -> None:
        """Note an acknowledged save: from now on no client may be shown less."""
        for kind, value in values.items():
            key, number = (agent_id, kind), value[2]
            assert isinstance(number, int)
            self._acknowledged[key] = max(number, self._acknowledged.get(key, 0))
            self._acknowledged_to.setdefault((client, key), []).append((now, number))

    # --- wakes ---

    def begin(self, now: float, what: str, client: int, deadline_s: float) -> Asked:
        """Begin a client's call."""
        return Asked(what, client, now, now + deadline_s, dict(self._acknowledged))

    def end(self, now: float, asked: Asked, states: Iterable[AgentState] = ()) -> None:
        """End a call, and check its time and the states that it gave."""
        if now > asked.deadline + GRACE_S:
            self.wrong.append(f"{asked.what} took {now - asked.began:.3f} s, of {asked.deadline - asked.began:.3f}")
        for state in states:
            for kind in KINDS:
                self._check(now, asked, state, kind)

    def handle_not_found(self, asked: Asked, agent_id: str) -> None:
        """Check that a wake that found no agent may have found none."""
        if asked.at_least.get((agent_id, KINDS[0])):
            self.wrong.append(f"{agent_id} is not found, and its {KINDS[0]} was acknowledged")

    def _check(self, now: float, asked: Asked, state: AgentState, kind: str) -> None:
        key, outcome = (state.agent_id, kind), state.outcome(kind)
        least = self._least(now, asked, key)
        if outcome is Outcome.ABSENT and least:
            self.wrong.append(f"{key} is absent, and {least} was acknowledged")
        elif outcome is Outcome.TIMEOUT and now < asked.deadline - _TIMER_SLACK_S:
            self.wrong.append(f"{key} is TIMEOUT before the deadline")
        elif outcome is Outcome.OK:
            agent_id, of, number, *_ = state[kind]
            if (agent_id, of) != key:
                self.wrong.append(f"{key} is shown as {of} of {agent_id}")
            elif not least <= number <= self._issued.get(key, 0):
                self.wrong.append(f"{key} is shown as number {number}, and {least} was acknowledged")

    def _least(self, now: float, asked: Asked, key: Key) -> int:
        """Return the newest value acknowledged before the call began, or to its own client before it ended."""
        own = [number for at, number in self._acknowledged_to.get((asked.client, key), ()) if at < now]
        return max([asked.at_least.get(key, 0), *own])
