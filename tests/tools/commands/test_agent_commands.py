"""`dawnchorus wake` of an agent, beside `Cluster.wake`."""

import orjson
import pytest

from dawnchorus import AgentNotFound
from dawnchorus.tools.commands.agent_commands import _wake  # pyright: ignore[reportPrivateUsage]  # the command, in this loop
from dawnchorus.wire.cluster.topology import KindSpec, StoreSpec
from tests.support.fake_nodes import fake_client

LONG_S = 20.0
KINDS = {"profile": KindSpec("id"), "history": KindSpec("old")}


@pytest.mark.parametrize("wake", ["eager", "lazy"])
async def test_wake_without_required_kinds_shows_absence(wake: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    stores = {"id": StoreSpec(shards=1), "old": StoreSpec(shards=1, wake=wake)}
    async with fake_client(KINDS, stores=stores) as (cluster, nodes):
        nodes.put("there", profile=1, history=2)
        endpoint = cluster.topology.nodes["id-1"].endpoint
        for agent_id, kinds in (("there", None), ("nobody", None), ("nobody", ("profile",)), ("nobody", tuple(KINDS))):
            try:
                state = await cluster.wake(agent_id, kinds, deadline_s=LONG_S)
            except AgentNotFound:
                expected = {"agent_id": agent_id, "found": False, "complete": False}
            else:
                asked = kinds or ("profile", "history")[: 1 if wake == "lazy" else 2]
                expected = {
                    "agent_id": agent_id,
                    "found": True,
                    "complete": True,
                    "outcomes": {kind: state.outcome(kind).name for kind in asked},
                    "versions": {kind: str(state.version(kind)) for kind in asked},
                    "values": {kind: state[kind] for kind in asked if kind in state},
                    "fallbacks": {},
                }
            code = await _wake((agent_id,), kinds, LONG_S, endpoint, pretty=False)
            assert orjson.loads(capsysbinary.readouterr().out) == expected
            assert code == (0 if expected["found"] else 1)
