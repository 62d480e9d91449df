"""The output of `status` for the nodes' answers."""

import io
from typing import cast

import msgspec
import orjson
from rich.console import Console

from dawnchorus.tools.commands.status_command import Answers, describe, render
from dawnchorus.wire.cluster.topology import NodeSpec
from dawnchorus.wire.errors import ClusterUnavailable
from dawnchorus.wire.protocol.messages import ShardStatus, StatusReply

NODES = {name: NodeSpec(name, f"tcp://127.0.0.1:{port}", ("live",)) for name, port in [("one", 7411), ("two", 7412)]}


def reply(node: str, *states: str) -> StatusReply:
    """Return a node's answer with a shard for each of these states."""
    shards = [
        ShardStatus("live", number, 1, (1 << 60) + number, 1_000, 1 << 20, state) for number, state in enumerate(states)
    ]
    return StatusReply(1, node, 4242, 90_000, 50 << 20, shards, {"fetches": 12_345, "late": 0})


def rendered(answers: Answers, width: int = 140) -> str:
    """Return the tables as text."""
    console = Console(file=io.StringIO(), width=width)
    render("dev", NODES, answers, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_cluster_that_is_well() -> None:
    answers: Answers = {"two": reply("two", "serving"), "one": reply("one", "serving", "serving")}
    described = describe("dev", NODES, answers)
    assert described["healthy"] is True
    first = orjson.loads(orjson.dumps(described))["nodes"][0]
    assert (first["node"], first["up"], first["agents"], first["disk_bytes"]) == ("one", True, 2_000, 2 << 20)
    assert first["shards"][1]["version"] == str((1 << 60) + 1)
    text = rendered(answers)
    assert "2,000" in text
    assert "12,345" in text
    assert "late" not in text  # nothing was counted there
    assert "tcp://127.0.0.1:7411" in text
    assert "not served" not in text


def test_down_node_and_unserved_shard_are_named() -> None:
    answers: Answers = {
        "one": reply("one", "serving", "page 7 is corrupt"),
        "two": ClusterUnavailable("node 'two' is not connected"),
    }
    described = orjson.loads(orjson.dumps(describe("dev", NODES, answers)))
    assert described["healthy"] is False
    assert described["nodes"][1] == {
        "node": "two",
        "endpoint": "tcp://127.0.0.1:7412",
        "up": False,
        "error": "node 'two' is not connected",
    }
    text = rendered(answers)
    assert "1 of 2" in text
    assert "one: shard 1 of store live is not served: page 7 is corrupt" in text
    assert "two is down: node 'two' is not connected" in text


def test_shard_with_failed_save_counts_as_served() -> None:
    full = ShardStatus("live", 7, 1, 1, 1_000, 1 << 20, "serving", "/d/live/0007: no space left on the disk")
    answers: Answers = {"one": reply("one", "serving"), "two": StatusReply(1, "two", 1, 1, 1, [full], {})}
    described = orjson.loads(orjson.dumps(describe("dev", NODES, answers)))
    assert described["healthy"] is False
    assert described["nodes"][1]["shards"][0]["last_error"] == "/d/live/0007: no space left on the disk"
    text = rendered(answers)
    assert "two: the last save to shard 7 of store live failed: /d/live/0007: no space left on the disk" in text
    assert "not served" not in text


def test_node_taking_no_clients_is_named() -> None:
    crowded = StatusReply(
        1, "two", 1, 1, 1, [], {}, clients=800, descriptors=900, descriptors_max=1_024, takes_clients=False
    )
    answers: Answers = {"one": reply("one", "serving"), "two": crowded}
    described = orjson.loads(orjson.dumps(describe("dev", NODES, answers)))
    assert described["healthy"] is False
    assert described["nodes"][1]["takes_clients"] is False
    assert described["nodes"][1]["clients"] == 800
    assert "two takes no more clients: 900 of its 1,024 descriptors are in use" in rendered(answers)


def test_a_shard_whose_file_is_gone_is_named() -> None:
    gone = ShardStatus("live", 7, 1, 1, 0, 0, "serving", "", "/d/live/0007/data.mdb is not there any more")
    answers: Answers = {"one": reply("one", "serving"), "two": StatusReply(1, "two", 1, 1, 1, [gone], {})}
    assert describe("dev", NODES, answers)["healthy"] is False
    assert "two: shard 7 of store live: /d/live/0007/data.mdb is not there any more" in rendered(answers)


def test_nodes_that_serve_different_topologies_are_named() -> None:
    def serving(node: str, digest: str) -> StatusReply:
        return msgspec.structs.replace(reply(node, "serving"), topology=digest)

    same: Answers = {"one": serving("one", "aa"), "two": serving("two", "aa")}
    assert describe("dev", NODES, same, "aa")["healthy"] is True
    assert "topology" not in rendered(same)
    other: Answers = {**same, "two": serving("two", "bb"), "three": serving("three", "aa")}
    described = describe("dev", NODES, other, "aa")
    assert described["healthy"] is False
    (problem,) = cast("list[str]", described["topology_problems"])
    assert problem.startswith("two: serves topology bb, and one, three aa: the file was changed")
    assert problem in rendered(other)
    # A file that the nodes have not taken up is said, and no fault of theirs.
    changed = describe("dev", NODES, same, "cc")
    assert changed["healthy"] is True
    assert "the topology file here is not what the nodes serve" in str(changed["topology_problems"])
    # Nodes of before say nothing of it.
    assert (
        describe("dev", NODES, {"one": reply("one", "serving"), "two": serving("two", "aa")}, "aa")["healthy"] is True
    )


def test_differing_clocks_are_named_and_healthy() -> None:
    shards = [
        ShardStatus("live", number, 1, 1, 1_000, 1 << 20, "serving", "", "", ahead_ms)
        for number, ahead_ms in enumerate([172_800_000, 3_000, 1_999, -60_000])
    ]
    answers: Answers = {"one": reply("one", "serving"), "two": StatusReply(1, "two", 1, 1, 1, shards, {})}
    described = orjson.loads(orjson.dumps(describe("dev", NODES, answers)))
    assert described["healthy"] is True
    assert [shard["clock_ahead_ms"] for shard in described["nodes"][1]["shards"]][:2] == [172_800_000, 3_000]
    text = rendered(answers)
    assert "two: the clocks of 2 shards are ahead of its host's, by up to 2.0 d" in text
    assert "two: its host's clock is ahead of those of 1 shards, by up to 60.0 s" in text
    assert "one:" not in text


def test_every_column_fits_an_ordinary_terminal() -> None:
    text = rendered({"one": reply("one", *["serving"] * 16), "two": reply("two", *["serving"] * 16)}, width=80)
    assert "…" not in text
    assert "16,000" in text
