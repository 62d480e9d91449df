"""Ratios, targets and tables of `perf save`."""

import io

import msgspec
from rich.console import Console

from dawnchorus.perf.harness.measure import Spread, Tail
from dawnchorus.perf.peers.postgres_peer import Upserts
from dawnchorus.perf.peers.redis_peer import Batch
from dawnchorus.perf.saves.report import (
    SaveBatches,
    SavePeers,
    SaveReport,
    SingleWakes,
    render_save,
    save_ratios,
    save_targets,
)

PEERS = SavePeers(
    redis_sets_ms=Spread(300.0, 400.0, 500.0),
    redis_packed_ms=Spread(90.0, 100.0, 110.0),
    postgres_ms=Spread(200.0, 250.0, 300.0),
    raw_fsync_us=Tail(200.0, 400.0),
    fdatasync_per_s=5000.0,
)
SAVE_MANY, SINGLE, IDLE, SAVING, BACKUP = (
    Spread(80.0, 100.0, 120.0),
    Tail(500.0, 900.0),
    Tail(150.0, 300.0),
    Tail(200.0, 1800.0),
    Tail(160.0, 450.0),
)
REPORT = SaveReport(
    agents=10_000,
    fragments=5,
    value_bytes=512,
    topology="one-store",
    runs=5,
    file_system="ext4 on /dev/vda",
    save_many_ms=SAVE_MANY,
    single_us=SINGLE,
    savers=1000,
    concurrent_per_s=60_000.0,
    wake_idle_us=IDLE,
    wake_saving_us=SAVING,
    wake_backup_us=BACKUP,
    saving_per_s=50_000.0,
    peers=PEERS,
    ratios=save_ratios(SAVE_MANY, SINGLE, 60_000.0, SingleWakes(IDLE, SAVING, BACKUP), PEERS),
    batches=SaveBatches(Batch(100, True), Batch(500, False), Upserts(1000, at_once=True)),
    notes=[],
)


def text_of(report: SaveReport) -> str:
    """Return the report as a terminal shows it."""
    console = Console(file=io.StringIO(), width=160)
    console.print(render_save(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_ratios_are_of_medians_and_p99() -> None:
    assert msgspec.structs.asdict(REPORT.ratios) == {
        "saves_to_redis_sets": 0.25,
        "saves_to_redis_packed": 1.0,
        "saves_to_postgres": 0.4,
        "single_to_raw_fsync": 2.5,
        "concurrent_to_fdatasync": 12.0,
        "wake_p99_saving_to_idle": 6.0,
        "wake_p99_backup_to_idle": 1.5,
    }


def test_targets_hold_for_their_work_only() -> None:
    assert save_targets(REPORT).keys() == msgspec.structs.asdict(REPORT.ratios).keys()
    for changes in ({"agents": 9_999}, {"topology": "default"}, {"value_bytes": 4096}, {"savers": 500}):
        assert not save_targets(msgspec.structs.replace(REPORT, **changes))


def test_tables_show_met_and_missed_targets() -> None:
    text = text_of(REPORT)
    assert "every save synced to ext4 on /dev/vda" in text
    assert "1,000 rows each, kinds at once" in text
    (missed,) = [line for line in text.splitlines() if "must is missed" in line]
    assert "p99 of wakes beside savers" in missed and "<= 5" in missed
    assert "60,000" in text and "50,000 saves/s" in text


def test_a_peer_that_was_not_measured_is_said() -> None:
    peers = msgspec.structs.replace(PEERS, postgres_ms=None)
    ratios = save_ratios(SAVE_MANY, SINGLE, 60_000.0, SingleWakes(IDLE, SAVING, BACKUP), peers)
    assert ratios.saves_to_postgres is None
    batches = msgspec.structs.replace(REPORT.batches, postgres=None)
    notes = ["PostgreSQL was not measured: it is not here"]
    report = msgspec.structs.replace(REPORT, peers=peers, ratios=ratios, batches=batches, notes=notes)
    text = text_of(report)
    assert text.count("not measured") == 3
    assert "Note: PostgreSQL was not measured: it is not here" in text
