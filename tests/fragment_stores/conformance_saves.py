"""The rules of the engine roles for retries, expectations and expiry, beside those of `conformance`."""

import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.wire.protocol.image import Fragment, decode_image
from dawnchorus.wire.protocol.limits import TTL_MS_MAX
from dawnchorus.wire.protocol.messages import DeleteAgent, DeleteKind, Operation, Put, Rejection, RejectionCode, Write
from dawnchorus.wire.protocol.versions import first_version
from tests.fragment_stores.conformance import (
    PERMITTED,
    ShardConformance,
    commit,
    new_write_id,
    put,
    read,
    values,
    versions,
    write,
)

NEVER = 1 << 62


def expecting(agent: bytes, expect: dict[str, int] | None, *operations: Operation) -> Write:
    """Return a write with a condition and an id of its own."""
    return Write(agent, new_write_id(), 0, list(operations), expect)


def session(value: bytes = b"v", ttl_ms: int = 0) -> Put:
    return Put("session", 0, 0, value, ttl_ms)


def again(first: Write, seen: int = 0) -> Write:
    """Return the same write, repeated by a client that had seen this version when it first sent it."""
    return Write(first.agent, first.write_id, seen, first.operations, first.expect, repeated=True)


def fragments(store: Shard, agent: bytes) -> dict[str, Fragment]:
    [image] = read(store, [agent])
    return decode_image(image) if len(image) else {}


def code(result: int | Rejection) -> int:
    assert isinstance(result, Rejection), result
    return result.code


class SavesConformance(ShardConformance):
    """The rules of `conformance`, and those for what makes saves safe; `engine` is a subclass's."""

    # --- retries ---

    def test_repeated_write_returns_its_first_result(self, store: Shard) -> None:
        first = put("a", b"1")
        [version] = versions(commit(store, [first], 1))
        assert commit(store, [again(first)], 2) == [version]
        assert commit(store, [first], 3) == [version], "whether the client says that it repeats or not"
        assert store.version == version
        assert store.statistics().log_rows == 1
        assert fragments(store, b"a")["session"].updated_ms == 1

    def test_write_repeated_within_its_group_is_applied_once(self, store: Shard) -> None:
        first = put("a", b"1")
        results = versions(commit(store, [first, put("a", b"2"), again(first), put("b")], 1))
        assert results[2] == results[0]
        assert len(set(results)) == 3
        assert fragments(store, b"a")["session"].value == b"2"
        assert store.statistics().log_rows == 3

    def test_repeated_write_does_not_undo_later_writes(self, store: Shard) -> None:
        first = put("a", b"1")
        [version] = versions(commit(store, [first], 1))
        commit(store, [put("a", b"2")], 2)
        assert commit(store, [again(first)], 3) == [version]
        assert fragments(store, b"a")["session"].value == b"2"
        commit(store, [write(b"a", DeleteAgent())], 4)
        assert commit(store, [again(first)], 5) == [version]
        assert fragments(store, b"a") == {}

    def test_repeated_delete_keeps_later_saves(self, store: Shard) -> None:
        commit(store, [put("a", b"1")], 1)
        erase = write(b"a", DeleteAgent())
        [gone] = versions(commit(store, [erase], 2))
        commit(store, [put("a", b"2")], 3)
        assert commit(store, [again(erase)], 4) == [gone]
        assert fragments(store, b"a")["session"].value == b"2"

    def test_repeated_write_is_known_after_writes_and_reopening(self, path: Path) -> None:
        first = put("a", b"1")
        with self.opened(path, create=True, generation=1) as store:
            seen = store.version
            [version] = versions(commit(store, [first], 1))
            commit(store, [put(f"other-{number}") for number in range(50)], 2)
        for generation in (2, 3):
            with self.opened(path, generation=generation) as store:
                commit(store, [put("a", b"%d" % generation), put("b")], 3)
                assert commit(store, [again(first, seen)], 4) == [version]
                assert fragments(store, b"a")["session"].value == b"%d" % generation

    def test_repeated_write_with_outdated_expectation_returns_first_result(self, store: Shard) -> None:
        first = expecting(b"a", {"session": 0}, session(b"1"))
        [version] = versions(commit(store, [first], 1))
        assert commit(store, [again(first)], 2) == [version]

    def test_write_never_applied_is_applied_when_repeated(self, store: Shard) -> None:
        seen = store.version
        commit(store, [put("other")], 1)
        late = put("a", b"late")
        [version] = versions(commit(store, [again(late, seen)], 2))
        assert version == store.version
        assert fragments(store, b"a")["session"].value == b"late"

    def test_rejected_write_may_be_applied_when_repeated(self, store: Shard) -> None:
        [version] = versions(commit(store, [put("a")], 1))
        early = expecting(b"a", {"session": version + 1}, session(b"early"))
        assert code(commit(store, [early], 1)[0]) == RejectionCode.CONFLICT
        commit(store, [put("a")], 1)
        assert versions(commit(store, [again(early)], 1)) == [version + 2]

    def test_one_id_for_two_agents_is_rejected(self, store: Shard) -> None:
        [version] = versions(commit(store, [put("a", b"1", write_id=b"same")], 1))
        rejected, known = commit(store, [put("b", b"2", write_id=b"same"), put("a", b"1", write_id=b"same")], 2)
        assert code(rejected) == RejectionCode.INVALID
        assert known == version
        in_one_group = commit(store, [put("c", b"1", write_id=b"other"), put("d", b"2", write_id=b"other")], 3)
        assert [isinstance(result, Rejection) for result in in_one_group] == [False, True]
        assert values(store, [b"a", b"b", b"c", b"d"]) == [b"1", None, b"1", None]

    def test_writes_without_id_are_never_taken_as_repeats(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            assert (
                len(set(versions(commit(store, [put("a", b"1", write_id=b""), put("a", b"2", write_id=b"")], 1)))) == 2
            )
        with self.opened(path, generation=2) as store:
            [version] = versions(commit(store, [put("a", b"3", write_id=b"")], 2))
            assert version == first_version(2) + 1
            assert fragments(store, b"a")["session"].value == b"3"

    # --- expectations ---

    def test_conflict_reports_current_versions_and_changes_nothing(self, store: Shard) -> None:
        [version] = versions(commit(store, [write(b"a", session(b"1"), Put("context", 0, 0, b"c"))], 1))
        wrong = expecting(
            b"a", {"session": version + 7, "context": version, "other": 0}, session(b"2"), DeleteKind("context")
        )
        [result] = commit(store, [wrong], 2)
        assert isinstance(result, Rejection)
        assert result.code == RejectionCode.CONFLICT
        assert result.found == {"session": version, "context": version, "other": 0}
        assert (store.version, store.statistics().log_rows) == (version, 1)
        assert {kind: part.value for kind, part in fragments(store, b"a").items()} == {"session": b"1", "context": b"c"}

    def test_conflicting_write_fails_alone_in_its_group(self, store: Shard) -> None:
        [version] = versions(commit(store, [put("a", b"1")], 1))
        results = commit(
            store,
            [
                put("b", b"1"),
                expecting(b"a", {"session": 0}, session(b"wrong")),
                expecting(b"a", {"session": version}, session(b"2")),
                expecting(b"a", {"session": version}, session(b"too late")),
                put("c", b"1"),
            ],
            2,
        )
        assert [isinstance(result, Rejection) for result in results] == [False, True, False, True, False]
        assert [code(results[1]), code(results[3])] == [RejectionCode.CONFLICT] * 2
        assert values(store, [b"a", b"b", b"c"]) == [b"2", b"1", b"1"]
        assert [row.agent for _, row in store.log_after(version, 10)] == [b"b", b"a", b"c"]

    def test_zero_expects_an_absent_fragment(self, store: Shard) -> None:
        assert versions(commit(store, [expecting(b"a", {"session": 0}, session())], 1))
        assert code(commit(store, [expecting(b"a", {"session": 0}, session())], 1)[0]) == RejectionCode.CONFLICT
        commit(store, [write(b"a", DeleteAgent())], 1)
        assert versions(commit(store, [expecting(b"a", {"session": 0}, session())], 1))

    def test_a_delete_expects_like_any_write(self, store: Shard) -> None:
        [version] = versions(commit(store, [put("a")], 1))
        assert code(commit(store, [expecting(b"a", {"session": 1}, DeleteAgent())], 1)[0]) == RejectionCode.CONFLICT
        assert versions(commit(store, [expecting(b"a", {"session": version}, DeleteAgent())], 1)) == [version + 1]
        assert fragments(store, b"a") == {}

    def test_one_of_many_writes_expecting_a_version_wins(self, store: Shard) -> None:
        version = 0
        for _ in range(5):
            writes = [expecting(b"a", {"session": version}, session(b"%d" % number)) for number in range(20)]
            won = [result for result in commit(store, writes, 1) if isinstance(result, int)]
            assert len(won) == 1
            [version] = won

    # --- expiry ---

    def test_fragment_expires_by_the_shards_clock(self, store: Shard) -> None:
        commit(store, [put("a")], 5_000)
        commit(store, [write(b"b", session(ttl_ms=100), Put("context", 0, 0, b"c"))], 4_000)
        assert {kind: part.expires_ms for kind, part in fragments(store, b"b").items()} == {
            "session": 5_100,
            "context": 0,
        }

    def test_expired_fragment_counts_as_absent(self, store: Shard) -> None:
        [version] = versions(commit(store, [write(b"a", session(ttl_ms=100))], 1_000))
        early = commit(store, [expecting(b"a", {"session": 0}, session(b"2"))], 1_099)
        assert code(early[0]) == RejectionCode.CONFLICT
        late = commit(store, [expecting(b"a", {"session": version}, session(b"2"))], 1_100)
        assert code(late[0]) == RejectionCode.CONFLICT
        assert isinstance(late[0], Rejection)
        assert late[0].found == {"session": 0}
        assert versions(commit(store, [expecting(b"a", {"session": 0}, session(b"2"))], 1_100)) == [version + 1]

    def test_sweeper_removes_expired_fragments_and_logs_it(self, store: Shard) -> None:
        commit(store, [write(b"a", session(ttl_ms=100), Put("context", 0, 0, b"c")), put("b")], 1_000)
        [version] = versions(commit(store, [write(b"c", session(ttl_ms=100))], 1_000))
        assert store.sweep(1_099, 10, 1_099) == (0, 0)
        assert store.sweep(1_100, 10, 2_000) == (2, 2)
        assert set(fragments(store, b"a")) == {"context"}
        assert values(store, [b"b", b"c"]) == [b"v", None]
        rows = [(row.agent, row.write_id, row.operations) for _, row in store.log_after(version, 10)]
        assert rows == [(b"a", b"", [(2, "session")]), (b"c", b"", [(2, "session")])]
        assert store.version == version + 2
        assert store.sweep(NEVER, 10, 2_000) == (0, 0)

    def test_the_next_expiry_is_never_too_late(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            assert store.next_expiry_ms == 0
            commit(store, [put("a"), write(b"b", session(ttl_ms=900)), write(b"c", session(ttl_ms=500))], 1_000)
            assert store.next_expiry_ms == 1_500
            commit(store, [write(b"c", session(ttl_ms=2_000))], 1_100)
            assert 0 < store.next_expiry_ms <= 1_900
            assert store.sweep(1_800, 10, 1_800) == (0, 0)
            assert store.next_expiry_ms == 1_900, "a sweep has looked"
        with self.opened(path, generation=2) as store:
            assert store.next_expiry_ms == 1_900
            assert store.sweep(1_900, 10, 2_000) == (1, 1)
            assert store.next_expiry_ms == 3_100
            assert store.postpone_expiry(1_050, 400, 2_000) == 1
            assert store.next_expiry_ms == 3_500
            assert store.sweep(NEVER, 10, 9_000) == (1, 1)
            assert store.next_expiry_ms == 0

    def test_a_fragment_saved_again_outlives_its_first_expiry(self, store: Shard) -> None:
        commit(store, [write(b"a", session(b"1", 100)), write(b"b", session(b"1", 100))], 1_000)
        commit(store, [write(b"a", session(b"2", 1_000)), put("b", b"2")], 1_050)
        assert store.sweep(1_500, 10, 1_500) == (0, 0), "their rows went with the fragments that they were for"
        assert values(store, [b"a", b"b"]) == [b"2", b"2"]
        assert store.sweep(2_050, 10, 2_050) == (1, 1)
        assert values(store, [b"a", b"b"]) == [None, b"2"]

    def test_expiry_of_recent_writes_can_be_postponed(self, store: Shard) -> None:
        commit(store, [write(b"a", session(b"old", 100)), write(b"b", session(b"old", 9_000))], 1_000)
        commit(store, [write(b"a", Put("context", 0, 0, b"new", 50), Put("history", 0, 0, b"new"))], 1_050)
        commit(store, [write(b"c", session(b"new", 50), Put("context", 0, 0, b"new", 50))], 1_050)
        before = {agent: fragments(store, agent) for agent in (b"a", b"b", b"c")}
        version = store.version
        assert store.postpone_expiry(1_050, 500, 1_600) == 3
        assert (store.version, store.clock_ms) == (version, 1_600)
        after = {agent: fragments(store, agent) for agent in (b"a", b"b", b"c")}
        moved = {(b"a", "context"), (b"c", "session"), (b"c", "context")}
        for agent, kinds in before.items():
            for kind, fragment in kinds.items():
                by_ms = 500 if (agent, kind) in moved else 0
                assert after[agent][kind] == msgspec.structs.replace(fragment, expires_ms=fragment.expires_ms + by_ms)
        assert store.sweep(1_599, 10, 1_600) == (1, 1), "of the old ones"
        assert store.sweep(1_600, 10, 1_600) == (2, 3)
        assert set(fragments(store, b"a")) == {"history"}
        assert store.postpone_expiry(5_000, 500, 9_000) == 0
        assert store.clock_ms == 1_600, "nothing was done"

    def test_sweep_is_bounded_in_rows_and_continues_later(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            commit(store, [write(b"agent-%d" % number, session(ttl_ms=100 + number)) for number in range(25)], 1_000)
            assert store.sweep(NEVER, 10, 9_000) == (10, 10)
            assert store.statistics().agents == 15
        with self.opened(path, generation=2) as store:
            assert store.sweep(1_120, 20, 9_000) == (11, 11), "those that expired first went first"
            assert store.sweep(NEVER, 20, 9_000) == (4, 4)
            assert store.statistics().agents == 0

    def test_sweepers_writes_are_not_taken_for_a_clients(self, path: Path) -> None:
        with self.opened(path, create=True, generation=1) as store:
            commit(store, [write(b"a", session(ttl_ms=1))], 1_000)
            store.sweep(NEVER, 10, 2_000)
        with self.opened(path, generation=2) as store:
            [version] = versions(commit(store, [put("a", b"2", write_id=b"")], 2_000))
            assert version == first_version(2) + 1

    @pytest.mark.parametrize("ttl_ms", [TTL_MS_MAX + 1, (1 << 64) - 1])
    def test_lifetime_beyond_limit_rejects_that_write_alone(self, store: Shard, ttl_ms: int) -> None:
        results = commit(store, [put("b"), write(b"a", session(ttl_ms=ttl_ms)), put("c")], 1_000)
        assert [isinstance(result, Rejection) for result in results] == [False, True, False]
        assert versions(commit(store, [write(b"a", session(ttl_ms=TTL_MS_MAX))], 1_000))

    def test_reads_stay_complete_during_concurrent_commits_and_sweeps(self, store: Shard) -> None:
        ended = threading.Event()
        torn: list[Sequence[bytes | None]] = []

        def look() -> None:
            while not ended.is_set():
                seen = values(store, [b"a", b"b"])
                if (seen[0] is None) != (seen[1] is None):
                    torn.append(seen)

        looker = threading.Thread(target=look)
        looker.start()
        try:
            for number in range(60):
                commit(store, [write(b"a", session(ttl_ms=1)), write(b"b", session(ttl_ms=1))], number * 10)
                assert store.sweep(number * 10 + 5, 10, number * 10 + 5) == (2, 2)
        finally:
            ended.set()
            looker.join()
        assert not torn

    # --- against a model ---

    @settings(max_examples=25, suppress_health_check=PERMITTED)
    @given(data=st.data())
    def test_repeated_conditional_writes_apply_once_and_in_order(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("retries") / "shard"
        sent: list[Write] = []
        coin = st.booleans()
        applied: dict[bytes, int] = {}
        current: dict[bytes, tuple[int, bytes]] = {}  # version and value by agent
        for generation in (1, 2):
            with self.opened(path, create=generation == 1, generation=generation) as store:
                for _ in range(data.draw(st.integers(1, 4))):
                    group: list[Write] = []
                    for _ in range(data.draw(st.integers(1, 5))):
                        if len(sent) > 0 and data.draw(coin):
                            group.append(again(data.draw(st.sampled_from(sent))))
                            continue
                        agent = data.draw(st.sampled_from([b"a", b"b"]))
                        version = data.draw(st.sampled_from([None, 0, current.get(agent, (0, b""))[0]]))
                        expect = None if version is None else {"session": version}
                        group.append(expecting(agent, expect, session(b"%d" % len(sent))))
                        sent.append(group[-1])
                    for each, result in zip(group, commit(store, group, 1), strict=True):
                        known = applied.get(each.write_id)
                        there = current.get(each.agent, (0, b""))[0]
                        if known is not None:
                            assert result == known
                        elif each.expect not in (None, {"session": there}):
                            assert code(result) == RejectionCode.CONFLICT
                        else:
                            assert isinstance(result, int) and result > max([0, *applied.values()])
                            [operation] = each.operations
                            assert isinstance(operation, Put)
                            applied[each.write_id] = result
                            current[each.agent] = result, operation.value
                for agent, (version, value) in current.items():
                    assert fragments(store, agent) == {"session": Fragment(version, 0, 0, 1, 0, value)}
                assert store.statistics().log_rows == len(applied)
