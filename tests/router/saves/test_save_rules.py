"""The rules of saves, under any fate of their messages: order, at most one application, no false certainty."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dawnchorus import (
    ClusterUnavailable,
    Saved,
    SaveError,
    SaveIncomplete,
    SaveIndeterminate,
    SaveRejected,
    VersionConflict,
)
from dawnchorus.router.client.kind_registry import Kinds
from dawnchorus.router.client.save_request import deletions, expectations, operations
from dawnchorus.router.saves.agent_write import AgentWrite
from dawnchorus.router.saves.write_token import WriteToken
from dawnchorus.wire.cluster.topology import KindSpec
from dawnchorus.wire.protocol.image import decode_image
from dawnchorus.wire.protocol.messages import Put
from tests.support.fake_nodes import fake_topology, placement_of
from tests.support.saving_model import HandLoop, HandRouter, hand_saver

KINDS = {"a": KindSpec("one"), "b": KindSpec("one"), "c": KindSpec("two")}
AGENTS = ["x", "y"]
BUDGETS_S = [1.0, 3.0, 60.0]

agents = st.sampled_from(AGENTS)
chosen = st.sets(st.sampled_from(list(KINDS)), min_size=1)
budgets = st.sampled_from(BUDGETS_S)
nodes = st.sampled_from(["one-1", "two-1"])


class Call:
    """One save and its result."""

    def __init__(self, write: AgentWrite, future: asyncio.Future[Saved]) -> None:
        self.write = write
        self.future = future


class SaveRules(RuleBasedStateMachine):
    """One client's saves to two nodes of two shards; each step of a test is one event."""

    LOG_ROWS_MAX = 1_000

    @initialize()
    def begin(self) -> None:
        self.topology = fake_topology(kinds=KINDS)
        self.kinds = Kinds(self.topology, None)
        self.loop = HandLoop()
        self.router = HandRouter(placement_of(self.topology), self.loop, log_rows_max=self.LOG_ROWS_MAX)
        self.saver = hand_saver(self.router, self.topology.kinds_of, self.loop)
        self.calls: list[Call] = []
        self.numbers: dict[tuple[int, int], int] = {}  # of each call, by its write's token and attempt
        self.tokens: list[WriteToken] = []  # kept, so that none has the address of another
        self.errors: list[tuple[AgentWrite, SaveError]] = []
        self.serial = 0
        self.saved: dict[str, Saved] = {}
        self.keyed: dict[tuple[str, str], Any] = {}

    # --- calls of a user ---

    @rule(agent=agents, kinds=chosen, budget_s=budgets, expects=st.sampled_from([None, 0, "saved"]))
    def save(self, agent: str, kinds: set[str], budget_s: float, expects: Any) -> None:
        self.serial += 1
        by_store = operations(self.kinds, dict.fromkeys(sorted(kinds), self.serial), None, None)
        expect = expects
        if expects == "saved":
            expect = self.saved.get(agent)
            if expect is None or not kinds <= set(expect.versions):
                return
        expected = expectations(self.kinds, agent, expect, by_store)
        self._call(self.saver.write(agent, by_store, expected), budget_s)

    @rule(agent=agents, kinds=st.none() | chosen, budget_s=budgets)
    def delete(self, agent: str, kinds: set[str] | None, budget_s: float) -> None:
        self._call(self.saver.write(agent, deletions(self.kinds, kinds)), budget_s)

    @rule(agent=agents, key=st.just("k"), value=st.integers(0, 1), budget_s=budgets)
    def save_under_a_key(self, agent: str, key: str, value: int, budget_s: float) -> None:
        write = self.saver.write(agent, operations(self.kinds, {"a": value, "c": value}, None, None), None, key)
        self._call(write, budget_s)

    @precondition(lambda self: self.errors)
    @rule(data=st.data())
    def try_again(self, data: st.DataObject) -> None:
        write, error = data.draw(st.sampled_from(self.errors))
        assert error.repeat is not None
        future = cast("asyncio.Future[Saved]", error.repeat())
        assert write.attempts is not None
        self._number(write, write.attempts[0])
        self.calls.append(Call(write, future))
        self._look()

    def _call(self, write: AgentWrite, budget_s: float) -> None:
        self._number(write, 0)
        self.calls.append(Call(write, self.saver.save(write, budget_s)))

    def _number(self, write: AgentWrite, attempt: int) -> None:
        self.tokens.append(write.token)
        self.numbers[id(write.token), attempt] = len(self.numbers)

    # --- events ---

    @rule()
    def the_turn_ends(self) -> None:
        self.loop.end_turn()
        self._look()

    @rule(seconds=st.sampled_from([0.06, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.pass_time(seconds)
        self._look()

    @rule(node=nodes, data=st.data())
    def a_message_goes(self, node: str, data: st.DataObject) -> None:
        if self.router.waiting[node]:
            self.router.send(node, data.draw(st.integers(0, len(self.router.waiting[node]) - 1)))

    @rule(node=nodes, overloaded=st.sampled_from([False, False, False, True]))
    def a_node_takes_one(self, node: str, overloaded: bool) -> None:
        if self.router.inbox[node]:
            (self.router.overload if overloaded else self.router.serve)(node)

    @rule(node=nodes, again=st.booleans())
    def an_answer_comes(self, node: str, again: bool) -> None:
        if self.router.answers[node]:
            self.router.answer(node, again=again)
            self._look()

    @rule(lost=st.sampled_from([None, None, "one-1", "two-1"]))
    def all_goes_well_but_answers_of_one_node(self, lost: str | None) -> None:
        for _ in range(8):
            self.loop.end_turn()
            for node in self.router.nodes:
                while self.router.waiting[node]:
                    self.router.send(node, 0)
                while self.router.inbox[node]:
                    self.router.serve(node)
                while self.router.answers[node]:
                    if node == lost:
                        self.router.answers[node].popleft()
                    else:
                        self.router.answer(node, again=True)
        if lost is not None:
            self.loop.pass_time(max(BUDGETS_S))
        self._look()

    @rule(node=nodes, repeats=st.lists(st.booleans(), min_size=40, max_size=40))
    def a_connection_breaks(self, node: str, repeats: list[bool]) -> None:
        self.router.break_connection(node, repeats)
        self._look()

    @rule(node=nodes)
    def a_breaker_opens_or_closes(self, node: str) -> None:
        self.router.open ^= {node}

    # --- invariants ---

    @invariant()
    def saves_of_an_agent_are_applied_in_the_order_of_their_calls(self) -> None:
        for shard in self.router.shards.values():
            last: dict[bytes, int] = defaultdict(lambda: -1)
            for applied in shard.applied:
                number = self.numbers[id(applied.origin.token), applied.origin.attempt]
                assert number > last[applied.write.agent], "an earlier call was applied later"
                last[applied.write.agent] = number

    @invariant()
    def each_is_applied_once(self) -> None:
        for shard in self.router.shards.values():
            names = [applied.write.write_id for applied in shard.applied]
            assert len(names) == len(set(names))

    @invariant()
    def images_are_what_was_applied(self) -> None:
        for shard in self.router.shards.values():
            model: dict[tuple[bytes, str], tuple[int, bytes]] = {}
            for write, version, _ in shard.applied:
                for operation in write.operations:
                    if isinstance(operation, Put):
                        model[write.agent, operation.kind] = version, operation.value
                    else:
                        gone = getattr(operation, "kind", None)
                        model = {
                            key: value
                            for key, value in model.items()
                            if key[0] != write.agent or gone not in (None, key[1])
                        }
            found = {
                (agent, kind): (fragment.version, fragment.value)
                for agent, image in shard.images.items()
                for kind, fragment in decode_image(image).items()
            }
            assert found == model

    def _look(self) -> None:
        """Receive the results of completed calls."""
        for call in [call for call in self.calls if call.future.done()]:
            self.calls.remove(call)
            error = call.future.exception()
            if error is None:
                self._is_saved(call.write, call.future.result())
            else:
                assert isinstance(error, SaveError), error
                self.errors.append((call.write, error))
                self._is_no_surer_than_it_is(call.write, error)

    def _applied(self, write: AgentWrite) -> Mapping[str, int]:
        """Return the version of a write in each store that has applied it."""
        return {
            store: one.version
            for (store, _), shard in self.router.shards.items()
            for one in shard.applied
            if one.write.write_id == write.token.write_id
        }

    def _is_saved(self, write: AgentWrite, saved: Saved) -> None:
        applied = self._applied(write)
        for store, some in write.operations.items():
            for operation in some:
                if isinstance(operation, Put):
                    assert saved.versions[operation.kind] == applied[store]
        deleted: frozenset[str] = getattr(saved.versions, "deleted", frozenset())
        assert all(version for kind, version in saved.versions.items() if kind not in deleted)
        self.saved[write.agent_id] = saved
        if write.token.key:
            values = self.keyed.setdefault((write.agent_id, write.token.key), write.operations)
            assert values == write.operations, "one key for two saves"

    def _is_no_surer_than_it_is(self, write: AgentWrite, error: SaveError) -> None:
        applied = self._applied(write)
        if isinstance(error, SaveRejected | VersionConflict):
            known = self.keyed.get((write.agent_id, write.token.key)) if write.token.key else None
            if not write.token.key:
                assert not applied, "it was rejected, and is there"
            elif known is not None and known != write.operations:
                assert isinstance(error, SaveRejected)
        elif isinstance(error, SaveIncomplete) and not write.token.key:
            for store in error.rejected:
                assert store not in applied
            stores = {self.topology.kinds[kind].store for kind, version in error.saved.items() if version}
            assert stores <= set(applied)

    def teardown(self) -> None:
        """Close the client, and check that every call ends and nothing is kept."""
        if not hasattr(self, "saver"):
            return
        self._look()
        self.saver.close("the cluster was closed")
        for call in self.calls:
            assert isinstance(call.future.exception(), ClusterUnavailable)
        assert len(self.saver) == 0
        for _, error in self.errors:
            assert error.repeat is not None
            try:
                error.repeat()
            except ClusterUnavailable:
                continue
            raise AssertionError("it is closed")


class SaveRulesShortLog(SaveRules):
    """The same rules with a short log."""

    LOG_ROWS_MAX = 3

    def _is_no_surer_than_it_is(self, write: AgentWrite, error: SaveError) -> None:
        if not isinstance(error, SaveIndeterminate):
            super()._is_no_surer_than_it_is(write, error)


TestSaveRules = SaveRules.TestCase
TestSaveRules.settings = settings(max_examples=80, stateful_step_count=50)
