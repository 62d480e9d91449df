"""Expiry is a duration, whatever the wall clock does: the rule as a machine over clocks that are driven by hand."""

from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dawnchorus.fragment_stores.engine import Shard
from dawnchorus.nodes.maintenance import Housekeeper
from dawnchorus.nodes.node_clock import SWEEP_IN_DOUBT_MS, Clock
from dawnchorus.nodes.node_counters import NodeCounters
from dawnchorus.nodes.shard_table import OwnedShard
from dawnchorus.nodes.wall_clock import AGREED_MS, JUMP_MS, RECORD_EVERY_MS, ClockRecord

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
START_MS = 1_800_000_000_000
LOOK_MS = 20 * SECOND
"""The longest time between two looks at the clocks."""

errors = st.sampled_from([0, 0, 2 * DAY, -2 * DAY, HOUR, -HOUR, 3 * SECOND, -3 * SECOND, 5 * SECOND - START_MS])
pauses = st.sampled_from([3 * SECOND, 10 * MINUTE, 3 * DAY])
spans = st.sampled_from([1, 30, 100, 350, 700, 4_000])
LIFETIMES_MS = [SECOND, MINUTE, 20 * MINUTE, DAY]


class Fragment:
    """A saved fragment, and what the machine knows of it."""

    def __init__(self, real_ms: int, ttl_ms: int, updated_ms: int) -> None:
        self.real_ms = real_ms
        self.ttl_ms = ttl_ms
        self.updated_ms = updated_ms
        self.expires_ms = updated_ms + ttl_ms
        self.early = False
        """Whether it may go before its time: a wall clock that was wrong was believed."""
        self.late = False
        """Whether it may stay: time passed uncounted between two times of doubt."""


class Store:
    """A shard's fragments in memory, as far as its clock goes."""

    def __init__(self) -> None:
        self.clock_ms = 0
        self.fragments: list[Fragment] = []
        self.may_sweep = True
        self.swept_in_doubt = False

    @property
    def next_expiry_ms(self) -> int:
        return min([fragment.expires_ms for fragment in self.fragments], default=0)

    def save(self, fragment: Fragment) -> None:
        self.clock_ms = max(self.clock_ms, fragment.updated_ms)
        self.fragments.append(fragment)

    def postpone_expiry(self, since_ms: int, by_ms: int, now_ms: int) -> int:
        moved = [fragment for fragment in self.fragments if fragment.updated_ms >= since_ms]
        for fragment in moved:
            fragment.expires_ms += by_ms
        if moved:
            self.clock_ms = max(self.clock_ms, now_ms)
        return len(moved)

    def sweep(self, before_ms: int, rows_max: int, now_ms: int) -> tuple[int, int]:
        gone = [fragment for fragment in self.fragments if fragment.expires_ms <= before_ms]
        self.swept_in_doubt |= bool(gone) and not self.may_sweep
        self.fragments = [fragment for fragment in self.fragments if fragment not in gone]
        self.clock_ms = max(self.clock_ms, now_ms) if gone else self.clock_ms
        return len(gone), len(gone)


class ExpiryMachine(RuleBasedStateMachine):
    """A node with one shard on a machine that is paused and rebooted, and whose wall clock is wrong at times."""

    def __init__(self) -> None:
        super().__init__()
        self.real_ms = START_MS
        self.monotonic_ms = 50 * SECOND
        self.error_ms = 0
        self.boot = 1
        self.store = Store()
        self.record: ClockRecord | None = None
        self.newest_ms = 0
        self.started = False

    @property
    def wall_ms(self) -> int:
        return self.real_ms + self.error_ms

    @property
    def believed(self) -> bool:
        """Whether the wall clock has agreed for as long as it must, and looks have come since."""
        return self.monotonic_ms - self.agreed_since_ms >= AGREED_MS + LOOK_MS

    def start(self) -> None:
        self.shard = OwnedShard("live", 0, 1, frozenset(), cast(Shard, self.store))
        self.clock = Clock(
            [self.shard], self.record, self.keep, f"boot {self.boot}", lambda: self.wall_ms, lambda: self.monotonic_ms
        )
        self.clock.record()
        self.keeper = Housekeeper([self.shard], self.clock, NodeCounters(), lambda: self.monotonic_ms / 1_000)
        self.doubt()

    def keep(self, record: ClockRecord) -> None:
        self.record = record

    def doubt(self) -> None:
        """Begin a time of doubt: the wall clock was set, or was never seen before."""
        self.agreed_since_ms = self.monotonic_ms
        self.clock.look()
        for fragment in self.store.fragments:
            if self.shard.doubt_ms and fragment.updated_ms >= self.shard.doubt_ms:
                fragment.late = True

    def now_ms(self) -> int:
        return self.shard.now_ms(self.monotonic_ms)

    @initialize(error_ms=errors)
    def begin(self, error_ms: int) -> None:
        self.error_ms = error_ms
        self.start()
        self.started = True

    @rule(seconds=spans)
    def time_passes(self, seconds: int) -> None:
        while seconds > 0:
            step = min(seconds, LOOK_MS // SECOND)
            seconds -= step
            self.real_ms += step * SECOND
            self.monotonic_ms += step * SECOND
            doubt_ms = self.shard.doubt_ms and self.now_ms() - self.shard.doubt_ms
            self.store.may_sweep = (
                self.monotonic_ms - self.agreed_since_ms >= AGREED_MS or doubt_ms >= SWEEP_IN_DOUBT_MS
            )
            self.keeper.work_if_due()
            if self.error_ms and self.monotonic_ms - self.agreed_since_ms >= AGREED_MS:
                for fragment in self.store.fragments:
                    fragment.early = fragment.late = True

    @rule(error_ms=errors)
    def the_wall_clock_is_set(self, error_ms: int) -> None:
        moved_ms, self.error_ms = error_ms - self.error_ms, error_ms
        if abs(moved_ms) > JUMP_MS:
            self.doubt()
        self.clock.look()

    @rule(error_ms=errors, seconds=st.sampled_from([1, 2, 100, 290]), save=st.booleans())
    def the_wall_clock_is_wrong_for_a_while(self, error_ms: int, seconds: int, save: bool) -> None:
        before_ms = self.error_ms
        self.the_wall_clock_is_set(error_ms)
        if save:
            self.fragments_are_saved()
        self.time_passes(seconds)
        self.the_wall_clock_is_set(before_ms)

    @rule(for_ms=pauses, crash=st.booleans())
    def the_machine_is_paused(self, for_ms: int, crash: bool) -> None:
        self.real_ms += for_ms
        self.doubt()
        self.clock.look()
        self.use_in_doubt(crash)

    def use_in_doubt(self, crash: bool) -> None:
        """Save before the wall clock is believed again, maybe lose the process, and let it be believed."""
        self.fragments_are_saved()
        if crash:
            self.the_node_is_restarted(orderly=False)
        self.time_passes(2 * AGREED_MS // SECOND)

    @rule()
    def fragments_are_saved(self) -> None:
        now_ms = self.shard.now_ms(self.clock.look())
        if not self.store.clock_ms:
            self.newest_ms = now_ms  # what was before has stamped nothing
        for ttl_ms in LIFETIMES_MS:
            self.store.save(Fragment(self.real_ms, ttl_ms, now_ms))

    @rule(orderly=st.booleans())
    def the_node_is_restarted(self, orderly: bool) -> None:
        before_ms = self.now_ms()
        if orderly:
            self.keeper.finish()
        self.real_ms += 2 * SECOND
        self.monotonic_ms += 2 * SECOND
        self.start()
        assert self.now_ms() >= before_ms + 2 * SECOND, "the time without a node is counted"

    @rule(for_ms=pauses, error_ms=errors, orderly=st.booleans(), crash=st.booleans())
    def the_machine_is_rebooted(self, for_ms: int, error_ms: int, orderly: bool, crash: bool) -> None:
        before_ms = self.now_ms()
        if orderly:
            self.keeper.finish()
        self.boot += 1
        self.real_ms += for_ms
        self.monotonic_ms = 3 * SECOND
        self.error_ms = error_ms
        self.start()
        assert self.now_ms() >= self.store.clock_ms
        assert self.now_ms() >= before_ms - (0 if orderly else RECORD_EVERY_MS + LOOK_MS)
        self.newest_ms = self.now_ms()
        self.use_in_doubt(crash)

    @precondition(lambda self: self.started)
    @invariant()
    def the_shards_clock_never_goes_back(self) -> None:
        assert self.now_ms() >= self.newest_ms or not self.store.clock_ms
        assert self.store.clock_ms <= self.now_ms()
        self.newest_ms = self.now_ms()

    @invariant()
    def nothing_is_deleted_in_doubt(self) -> None:
        assert not self.store.swept_in_doubt

    @precondition(lambda self: self.started)
    @invariant()
    def nothing_expires_before_its_time(self) -> None:
        for fragment in self.store.fragments:
            if fragment.expires_ms <= self.now_ms() and not fragment.early:
                assert self.real_ms - fragment.real_ms >= fragment.ttl_ms - JUMP_MS

    @precondition(lambda self: self.started)
    @invariant()
    def what_is_over_is_expired_once_the_wall_clock_is_believed(self) -> None:
        if not self.believed or self.error_ms or self.now_ms() > self.wall_ms + JUMP_MS:
            return
        for fragment in self.store.fragments:
            if self.real_ms - fragment.real_ms >= fragment.ttl_ms + JUMP_MS + LOOK_MS and not fragment.late:
                assert fragment.expires_ms <= self.now_ms()


TestExpiry = ExpiryMachine.TestCase
TestExpiry.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
