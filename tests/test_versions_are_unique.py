"""No version is used twice, whatever is started, fails, is backed up and restored, in any order and however often."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from dawnchorus.tools.backup.manifest import ShardCopy
from dawnchorus.wire.protocol.versions import generation_of
from tests.support.lives import Backup, Given, Life

SHARDS = 1


class Interrupted(Exception):
    """The stand-in for the death of a restore."""


class LivesMachine(RuleBasedStateMachine):
    """Data directories of one cluster: the first, and those that its backups were restored into."""

    lives = Bundle("lives")
    backups = Bundle("backups")
    unfinished = Bundle("unfinished")

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="dc-lives-")
        self._given: set[Given] = set()
        self._newest: dict[Path, int] = {}
        """The newest version that each data directory has assigned or was restored with."""
        self._made = 0

    def teardown(self) -> None:
        self._directory.cleanup()

    def _new(self) -> Path:
        self._made += 1
        return Path(self._directory.name) / str(self._made)

    def _start(self, life: Life, writes: int) -> None:
        before = life.placement().generation
        given = life.start(writes)
        assert life.placement().generation == before + 1
        assert len(set(given)) == len(given) == writes * SHARDS
        assert not self._given & set(given), "a version is used again"
        self._given |= set(given)
        versions = [version for _shard, version in given]
        assert all(version > self._newest[life.path] for version in versions), "a version is older than what was there"
        self._newest[life.path] = max([self._newest[life.path], *versions])

    @initialize(target=lives)
    def begin(self) -> Life:
        life = Life(self._new(), SHARDS)
        life.fail()  # which makes it
        assert life.placement().generation == 0
        self._newest[life.path] = 0
        return life

    @rule(life=lives, writes=st.integers(0, 3))
    def start(self, life: Life, writes: int) -> None:
        self._start(life, writes)

    @rule(life=lives, times=st.integers(1, 5))
    def start_and_fail(self, life: Life, times: int) -> None:
        before = life.placement()
        for _ in range(times):
            life.fail()
        assert life.placement() == before, "a start that failed left a trace"

    @rule(target=backups, life=lives)
    def back_up(self, life: Life) -> Backup:
        backup = life.backup(self._new())
        self._newest[backup.path] = self._newest[life.path]
        return backup

    @rule(target=lives, backup=backups)
    def restore(self, backup: Backup) -> Life:
        life = Life(self._new(), SHARDS)
        life.restore(backup)
        return self._restored(life, backup)

    @rule(target=unfinished, backup=backups)
    def begin_to_restore(self, backup: Backup) -> tuple[Life, Backup]:
        life = Life(self._new(), SHARDS)

        def die(_copy: ShardCopy, _more: int) -> None:
            raise Interrupted

        with pytest.raises(Interrupted):
            life.restore(backup, die)
        return life, backup

    @rule(target=lives, begun=consumes(unfinished), backup=backups, other=st.booleans())
    def finish_a_restore(self, begun: tuple[Life, Backup], backup: Backup, other: bool) -> Life:
        life, first = begun
        chosen = backup if other else first
        life.restore(chosen)
        return self._restored(life, chosen)

    def _restored(self, life: Life, backup: Backup) -> Life:
        """Fail unless a restored cluster is beyond its backup, and by more than the starts since then."""
        known = generation_of(self._newest[backup.path])
        assert life.placement().generation > known + 1_000
        self._newest[life.path] = self._newest[backup.path]
        self._start(life, 1)
        return life


def test_lives_of_one_backup_share_no_version(tmp_path: Path) -> None:
    first = Life(tmp_path / "first", SHARDS)
    given = first.start(2)
    backup = first.backup(tmp_path / "backup")
    given += first.start(2)
    for number in range(10):
        life = Life(tmp_path / str(number), SHARDS)
        life.restore(backup)
        given += life.start(2) + life.start(1)
    # A copy of a data directory is another life as well, though no restore has made it.
    for name in ("copy", "other"):
        shutil.copytree(first.path, tmp_path / name)
        given += Life(tmp_path / name, SHARDS).start(2)
    assert len(set(given)) == len(given)


LivesMachine.TestCase.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLives = LivesMachine.TestCase
