"""The real agents of ../shared/data, or agents like them if that directory does not exist."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["airline_agents", "copies_of"]

_FILE = Path(__file__).parents[3] / "shared" / "data" / "agents-airline.ndjson"

Fragments = dict[str, Any]


def airline_agents() -> dict[str, Fragments]:
    """Return 200 agents by id, each with its fragments by kind: about 21 KB as JSON."""
    if _FILE.exists():
        with _FILE.open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        return {record["agent_id"]: record["fragments"] for record in records}
    made = random.Random(1)
    return {f"agent-{number:03}": _like_airline(made) for number in range(200)}


def copies_of(agents: dict[str, Fragments], copies: int) -> Iterator[tuple[str, Fragments]]:
    """Yield every agent `copies` times; copy k > 0 of an agent is named ID~k, as `load --copies` names it."""
    for agent_id, fragments in agents.items():
        for copy in range(copies):
            yield (f"{agent_id}~{copy}" if copy else agent_id), fragments


def _like_airline(made: random.Random) -> Fragments:
    def text(length: int) -> str:
        return made.randbytes(length // 2).hex()

    return {
        "profile": {"name": {"first": text(8), "last": text(8)}, "address": text(100), "dob": "1990-04-05", "é": "ü"},
        "session": {"reward": made.random(), "turns": made.randrange(40), "trial": 0, "open": True, "note": None},
        "context": {"task": text(500), "reservations": {text(6): [text(300)] * 3 for _ in range(3)}},
        "preference": {
            "payment": [{"source": "credit_card", "last_four": made.randrange(9_999)}] * 3,
            "seat": text(40),
        },
        "history": [{"role": "user", "content": text(500), "tool_calls": None} for _ in range(made.randrange(10, 50))],
    }
