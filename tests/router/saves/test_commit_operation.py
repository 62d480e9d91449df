"""The results of saves, for every answer and failure of a node: never more certain than they are."""

import asyncio

import msgspec
import pytest

from dawnchorus import (
    Cluster,
    ClusterUnavailable,
    DeadlineExceeded,
    InvalidRequestError,
    Saved,
    SaveIncomplete,
    SaveIndeterminate,
    SaveInterrupted,
    SaveRejected,
    UnknownKindError,
    VersionConflict,
)
from dawnchorus.router.client.value_codec import ValueRules
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.messages import (
    Commit,
    CommitReply,
    CommitReplySection,
    DeleteAgent,
    DeleteKind,
    FaultCode,
    Put,
    Rejection,
    RejectionCode,
    Request,
    SectionStatus,
    Write,
    encode,
)
from tests.support.clusters import eventually
from tests.support.fake_nodes import FakeNode, connect, fake_client, rejecting
from tests.support.internals import is_up, leftovers

LONG_S = 20.0
MIB = 1 << 20


def answering(node: FakeNode, status: int, *results: int | Rejection, detail: str = "") -> None:
    """Let a node answer every section of a Commit with this status and these results."""

    def answer(request: Request) -> list[bytes]:
        if not isinstance(request, Commit):
            return node.serve(request)
        sections = [
            CommitReplySection(index, status, 0, [*results], detail) for index, _ in enumerate(request.sections)
        ]
        return [encode(CommitReply(request.request, sections))]

    node.answer = answer


async def test_acknowledged_save_returns_version_of_each_kind() -> None:
    async with fake_client() as (cluster, nodes):
        saved = await cluster.save("a", {"profile": 1, "session": 2})
        assert saved.agent_id == "a"
        assert saved.versions == {"profile": nodes["id"].version, "session": nodes["live"].version}
        write_id, *seen = saved.write_id.split(".")
        assert len(bytes.fromhex(write_id)) == 16
        assert [part.split(":")[0] for part in seen] == ["id", "live"]
        state = await cluster.wake("a")
        assert {kind: state.version(kind) for kind in saved.versions} == saved.versions
        assert not nodes["old"].asked(Commit)
        assert not leftovers(cluster)


async def test_saves_of_many_agents_share_one_commit() -> None:
    async with fake_client() as (cluster, nodes):
        results = await cluster.save_many({f"agent-{number}": {"profile": number} for number in range(100)})
        assert all(isinstance(result, Saved) for result in results.values())
        assert len({result.write_id for result in results.values() if isinstance(result, Saved)}) == 100
        assert len(nodes["id"].asked(Commit)) == 1


async def test_large_batch_is_split_into_commits_within_limit() -> None:
    async with fake_client() as (cluster, nodes):
        results = await cluster.save_many({f"agent-{number}": {"profile": bytes(MIB // 3)} for number in range(10)})
        assert all(isinstance(result, Saved) for result in results.values())
        commits = nodes["id"].asked(Commit)
        assert len(commits) > 1
        sizes = [
            sum(
                len(put.value)
                for section in commit.sections
                for write in section.writes
                for put in puts(write.operations)
            )
            for commit in commits
        ]
        assert max(sizes) <= MIB


def puts(operations: list[Put | DeleteKind | DeleteAgent]) -> list[Put]:
    """Return the operations that set a value."""
    return [operation for operation in operations if isinstance(operation, Put)]


async def test_rejected_write_raises_save_rejected_with_reason() -> None:
    async with fake_client() as (cluster, nodes):
        answering(nodes["id"], SectionStatus.OK, Rejection("too large for this shard"))
        with pytest.raises(SaveRejected, match="too large for this shard") as raised:
            await cluster.save("a", {"profile": 1})
        assert list(raised.value.rejected) == ["id"]
        assert not raised.value.transient
        assert raised.value.agent_id == "a"


async def test_saved_rejected_and_unknown_stores_raise_save_incomplete() -> None:
    async with fake_client() as (cluster, nodes):
        answering(nodes["live"], SectionStatus.DISK_FULL, detail="no space left")
        answering(nodes["old"], SectionStatus.INTERNAL)
        with pytest.raises(SaveIncomplete) as raised:
            await cluster.save("a", {"profile": 1, "session": 2, "history": 3})
        assert raised.value.saved == {"profile": nodes["id"].version}
        assert list(raised.value.rejected) == ["live"]
        assert "no space left" in raised.value.rejected["live"]
        assert raised.value.unknown == ("old",)
        assert not raised.value.transient, "a full disk is not empty a moment later"


@pytest.mark.parametrize("status", [SectionStatus.MOVED, SectionStatus.SEALED, SectionStatus.TOO_LATE])
async def test_section_not_begun_is_rejected_as_transient(status: SectionStatus) -> None:
    async with fake_client() as (cluster, nodes):
        answering(nodes["id"], status)
        with pytest.raises(SaveRejected, match=status.name) as raised:
            await cluster.save("a", {"profile": 1})
        assert raised.value.transient == ("id",)


@pytest.mark.parametrize("status", [SectionStatus.INTERNAL, 99])
async def test_section_of_indeterminate_status_leaves_save_unknown(status: int) -> None:
    async with fake_client() as (cluster, nodes):
        answering(nodes["id"], status)
        with pytest.raises(DeadlineExceeded):
            await cluster.save("a", {"profile": 1})


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (FaultCode.BAD_REQUEST, SaveRejected),
        (FaultCode.OVERLOADED, SaveRejected),
        (FaultCode.INTERNAL, DeadlineExceeded),
    ],
)
async def test_fault_rejects_save_unless_node_failed_internally(code: FaultCode, error: type[Exception]) -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].answer = rejecting(code, Commit)
        with pytest.raises(error) as raised:
            await cluster.save("a", {"profile": 1}, deadline_s=LONG_S)
        assert getattr(raised.value, "transient", ()) == (("id",) if code == FaultCode.OVERLOADED else ())


async def test_wrong_number_of_results_leaves_save_unknown() -> None:
    async with fake_client() as (cluster, nodes):
        for results in ([], [1, 2]):
            answering(nodes["id"], SectionStatus.OK, *results)
            with pytest.raises(DeadlineExceeded):
                await cluster.save("a", {"profile": 1}, deadline_s=LONG_S)
        assert not leftovers(cluster)


async def test_save_without_answer_by_deadline_is_unknown() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].hold.add(Commit)
        with pytest.raises(DeadlineExceeded) as raised:
            await cluster.save("a", {"profile": 1}, deadline_s=0.1)
        assert isinstance(raised.value, TimeoutError)
        assert not leftovers(cluster)
        nodes["id"].release()  # a late answer disturbs nothing
        assert (await cluster.wake("a"))["profile"] == 1


async def test_save_to_unreachable_node_is_rejected() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].stop()
        await eventually(lambda: not is_up(cluster, "id-1"))
        with pytest.raises(SaveRejected, match="nothing was sent"):
            await cluster.save("a", {"profile": 1}, deadline_s=0.1)
        with pytest.raises(SaveIncomplete) as raised:
            await cluster.save("a", {"profile": 1, "session": 2}, deadline_s=0.6)
        assert list(raised.value.saved) == ["session"]
        assert list(raised.value.rejected) == ["id"]
        assert not leftovers(cluster)


async def test_save_waits_for_node_coming_up_in_time() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].stop()
        await eventually(lambda: not is_up(cluster, "id-1"))
        saving = asyncio.ensure_future(cluster.save("a", {"profile": 1}, deadline_s=LONG_S))
        await asyncio.sleep(0.01)
        nodes["id"].start()
        assert (await saving).versions == {"profile": nodes["id"].version}


def the_writes(node: FakeNode) -> list[Write]:
    """Return every write that was sent to a node, in order."""
    return [write for commit in node.asked(Commit) for section in commit.sections for write in section.writes]


async def test_save_resent_after_broken_connection_is_applied_once() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].hold.add(Commit)
        saving = asyncio.ensure_future(cluster.save("a", {"profile": 1, "session": 2}, deadline_s=LONG_S))
        await eventually(lambda: len(nodes["id"].held) == 1)
        nodes["id"].stop()
        nodes["id"].hold.clear()
        nodes["id"].start()
        saved = await saving
        first, second = the_writes(nodes["id"])
        assert not first.repeated
        assert second == msgspec.structs.replace(first, repeated=True)
        assert saved.versions == {"profile": nodes["id"].version, "session": nodes["live"].version}
        assert len(the_writes(nodes["live"])) == 1, "who had answered is not asked again"
        assert not leftovers(cluster)


@pytest.mark.parametrize("status", [SectionStatus.DISK_FULL, SectionStatus.MOVED, SectionStatus.TOO_LATE])
async def test_rejection_of_resent_save_leaves_it_unknown(status: SectionStatus) -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].hold.add(Commit)
        saving = asyncio.ensure_future(cluster.save("a", {"profile": 1}, deadline_s=LONG_S))
        await eventually(lambda: len(nodes["id"].held) == 1)
        nodes["id"].stop()
        nodes["id"].hold.clear()
        answering(nodes["id"], status)
        nodes["id"].start()
        with pytest.raises(DeadlineExceeded):
            await saving
        nodes["id"].answer = nodes["id"].serve


async def test_retry_keeps_write_id_and_asks_unknown_stores() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].hold.add(Commit)
        with pytest.raises(SaveIncomplete) as raised:
            await cluster.save("a", {"profile": 1, "session": 2}, deadline_s=0.6)
        assert raised.value.unknown == ("id",)
        with pytest.raises(SaveIncomplete) as again:  # with the deadline that it had
            await raised.value.retry()
        assert again.value.write_id == raised.value.write_id
        nodes["id"].release()
        saved = await again.value.retry()
        assert isinstance(saved, Saved)
        assert saved.write_id == raised.value.write_id
        assert saved.versions == {"profile": nodes["id"].version, "session": nodes["live"].version}
        writes = the_writes(nodes["id"])
        assert [write.repeated for write in writes] == [False, True, True]
        assert len({(write.write_id, write.seen) for write in writes}) == 1
        assert len(the_writes(nodes["live"])) == 1
        assert not leftovers(cluster)


async def test_another_client_repeats_save_by_write_id() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].hold.add(Commit)
        with pytest.raises(DeadlineExceeded) as raised:
            await cluster.save("a", {"profile": 1}, expect={"profile": 0}, deadline_s=0.1)
        nodes["id"].release()
        async with connect(cluster.topology) as other:
            await other.save("b", {"profile": 2})
            saved = await other.save("a", {"profile": 1}, expect={"profile": 0}, write_id=raised.value.write_id)
        assert saved.versions["profile"] < nodes["id"].version, "it is answered with the first result"
        first, _, second = the_writes(nodes["id"])
        assert second == msgspec.structs.replace(first, repeated=True)


async def test_save_carries_shard_version_known_when_first_sent() -> None:
    async with fake_client(shards={"id": 1}) as (cluster, nodes):
        await cluster.save("a", {"profile": 1})
        known = nodes["id"].version
        nodes["id"].put("b", profile=1)
        nodes["id"].put("c", profile=1)
        await cluster.save("a", {"profile": 2})
        assert [write.seen for write in the_writes(nodes["id"])] == [0, known]
        assert known < nodes["id"].version - 2


async def test_conflict_reports_found_versions() -> None:
    async with fake_client() as (cluster, nodes):
        answering(nodes["id"], SectionStatus.OK, Rejection("other", RejectionCode.CONFLICT, {"profile": 9}))
        with pytest.raises(VersionConflict) as raised:
            await cluster.save("a", {"profile": 1}, expect=0)
        assert raised.value.found == {"profile": 9}
        with pytest.raises(SaveIncomplete) as incomplete:
            await cluster.save("a", {"profile": 1, "session": 2}, expect=0)
        assert incomplete.value.conflicting == {"profile": 9}
        assert incomplete.value.saved == {"session": nodes["live"].version}
        with pytest.raises(VersionConflict):
            await cluster.delete("a", ["profile"], expect=0)
        results = await cluster.save_many({"a": {"profile": 1}, "b": {"session": 2}})
        assert [type(result).__name__ for result in results.values()] == ["VersionConflict", "Saved"]


async def test_save_repeated_too_late_is_indeterminate() -> None:
    async with fake_client() as (cluster, nodes):
        answering(nodes["id"], SectionStatus.OK, Rejection("the log reaches back to 9", RejectionCode.INDETERMINATE))
        with pytest.raises(SaveIndeterminate, match="id: the log reaches back to 9"):
            await cluster.save("a", {"profile": 1}, write_id="01.id:5")


async def test_expected_versions_are_sent_to_their_store() -> None:
    async with fake_client() as (cluster, nodes):
        saved = await cluster.save("a", {"profile": 1, "session": 2})
        state = await cluster.wake("a")
        await cluster.save("a", {"profile": 3, "history": 3}, expect=state)
        await cluster.save("a", {"profile": 4}, expect={"profile": 17})
        await cluster.save("a", {"profile": 5, "session": 5}, expect=0)
        await cluster.delete("a", expect=state)
        profile, session = saved.versions["profile"], saved.versions["session"]
        assert [write.expect for write in the_writes(nodes["id"])] == [
            None,
            {"profile": profile},
            {"profile": 17},
            {"profile": 0},
            {"profile": profile},
        ]
        assert [write.expect for write in the_writes(nodes["live"])] == [None, {"session": 0}, {"session": session}]
        assert [write.expect for write in the_writes(nodes["old"])] == [{"history": 0}, {"history": 0}]


async def test_ttl_comes_from_save_or_kind() -> None:
    kinds = {"a": KindSpec("id"), "b": KindSpec("id", ttl_s=60.0)}
    async with fake_client(kinds) as (cluster, nodes):
        await cluster.save("agent", {"a": 1, "b": 2})
        await cluster.save("agent", {"a": 1, "b": 2}, ttl_s=0.25)
        await cluster.save_many({"agent": {"a": 1, "b": 2}})
        lives = [{put.kind: put.ttl_ms for put in puts(write.operations)} for write in the_writes(nodes["id"])]
        assert lives == [{"a": 0, "b": 60_000}, {"a": 250, "b": 250}, {"a": 0, "b": 60_000}]


async def test_one_agents_error_leaves_others_saved() -> None:
    kinds = {f"k{number}": KindSpec("id") for number in range(5)}
    async with fake_client(kinds) as (cluster, _nodes):
        results = await cluster.save_many(
            {
                "good": {"k0": 1},
                "unknown kind": {"nonsense": 1},
                "": {"k0": 1},
                "x" * 257: {"k0": 1},
                "empty": {},
                "no msgpack": {"k0": object()},
                "too big an integer": {"k0": 2**64},
                "too large a fragment": {"k0": bytes(MIB + 1)},
                "too large a sum": {kind: bytes(MIB) for kind in kinds},
                "also good": {"k1": 1},
            }
        )
        names = {agent_id: type(result).__name__ for agent_id, result in results.items()}
        assert names.pop("good") == names.pop("also good") == "Saved"
        assert names.pop("unknown kind") == "UnknownKindError"
        assert set(names.values()) == {"InvalidRequestError"}
        assert len(names) == 7


async def test_invalid_arguments_are_rejected_before_sending() -> None:
    async with fake_client() as (cluster, nodes):
        with pytest.raises(UnknownKindError, match="profile, session, history"):
            await cluster.save("a", {"profile": 1, "nonsense": 2})
        with pytest.raises(InvalidRequestError, match="at least one kind"):
            await cluster.save("a", {})
        for deadline_s in (0, -1, float("nan"), 1e9):
            with pytest.raises(InvalidRequestError, match="deadline"):
                await cluster.save("a", {"profile": 1}, deadline_s=deadline_s)
        with pytest.raises(InvalidRequestError, match="at least one kind"):
            await cluster.delete("a", [])
        for ttl_s in (0, -1.0, float("nan"), float("inf"), 1e12):
            with pytest.raises(InvalidRequestError, match="ttl_s"):
                await cluster.save("a", {"profile": 1}, ttl_s=ttl_s)
        for write_id in ("", "x" * 257, "01.old:5"):
            with pytest.raises(InvalidRequestError, match="write_id"):
                await cluster.save("a", {"profile": 1}, write_id=write_id)
        for expect in (1, True, "profile", {"profile": -1}, {"profile": True}, {"session": 1}):
            with pytest.raises(InvalidRequestError, match="expect"):
                await cluster.save("a", {"profile": 1}, expect=expect)  # type: ignore[arg-type]
        with pytest.raises(UnknownKindError):
            await cluster.save("a", {"profile": 1}, expect={"nonsense": 1})
        assert not any(node.asked(Commit) for node in nodes.values())


async def test_required_kinds_come_first_in_write() -> None:
    kinds = {"a": KindSpec("id"), "b": KindSpec("id", required=True)}
    async with fake_client(kinds) as (cluster, nodes):
        await cluster.save("agent", {"a": 1, "b": 2})
        (commit,) = nodes["id"].asked(Commit)
        assert [put.kind for put in puts(commit.sections[0].writes[0].operations)] == ["b", "a"]


async def test_closing_cluster_ends_saves_and_rejects_calls() -> None:
    async with fake_client() as (cluster, nodes):
        nodes["id"].hold.add(Commit)
        under_way = asyncio.ensure_future(cluster.save("a", {"profile": 1}, deadline_s=LONG_S))
        await eventually(lambda: len(nodes["id"].held) == 1)
        unsent = asyncio.ensure_future(cluster.save("a", {"profile": 2}, deadline_s=LONG_S))
        many = asyncio.ensure_future(cluster.save_many({"b": {"session": 1}}, deadline_s=LONG_S))
        await asyncio.sleep(0)
        cluster.close()
        with pytest.raises(SaveInterrupted) as raised:
            await under_way
        assert isinstance(raised.value, ClusterUnavailable), "as every call that waits"
        assert raised.value.unknown == ("id",)
        with pytest.raises(ClusterUnavailable, match="nothing was sent"):
            await unsent
        assert isinstance((await many)["b"], ClusterUnavailable)
        with pytest.raises(ClusterUnavailable):
            await raised.value.retry()
        await rejects_every_call(cluster)


async def test_cluster_never_opened_rejects_every_call() -> None:
    async with fake_client() as (cluster, _):
        await rejects_every_call(Cluster(cluster.topology, ValueRules(), 1.0))


async def rejects_every_call(cluster: Cluster) -> None:
    """Check that every call of a cluster that is not open raises ClusterUnavailable."""
    with pytest.raises(ClusterUnavailable):
        await cluster.save("a", {"profile": 1})
    with pytest.raises(ClusterUnavailable):
        await cluster.save_many({"a": {"profile": 1}})
    with pytest.raises(ClusterUnavailable):
        await cluster.delete("a")
    with pytest.raises(ClusterUnavailable):
        await cluster.wake_many(["a"])
    with pytest.raises(ClusterUnavailable):
        cluster.wake("a")
    with pytest.raises(ClusterUnavailable):
        await anext(cluster.wake_stream(["a"]))
    with pytest.raises(ClusterUnavailable):
        await anext(cluster.agents())
    with pytest.raises(ClusterUnavailable):
        await cluster.status()
