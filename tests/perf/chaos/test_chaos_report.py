"""The report of chaos: the JSON object that programs read, and the tables for people."""

import io
import json

import msgspec
from rich.console import Console

from dawnchorus.perf.chaos.counts import Latency, WakeCounts
from dawnchorus.perf.chaos.report import (
    ChaosReport,
    Healing,
    OverloadReport,
    PhaseReport,
    render_chaos,
    unproven_phase,
)
from tests.support.reports import WAKES, chaos_report, phase_with

OVERLOAD = OverloadReport(
    share_of_core=0.1,
    best_per_s=5_000.0,
    times=3.0,
    offered_per_s=15_000.0,
    goodput_per_s=4_500.0,
    goodput_share=0.9,
    normal_per_s=1_250.0,
    before_ms=Latency(12.0, 30.0, 35.0, 40.0),
    after_ms=Latency(13.0, 31.0, 36.0, 41.0),
    after_incomplete=0,
)


def text_of(*phases: PhaseReport) -> str:
    """Return the report as a terminal shows it."""
    console = Console(file=io.StringIO(), width=200)
    console.print(render_chaos(chaos_report(*phases)))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_json_object_has_phases_with_every_number() -> None:
    found = json.loads(msgspec.json.encode(chaos_report(phase_with("overload", overload=OVERLOAD))))
    assert {"agents", "rate", "deadline_ms", "node", "seed", "phases", "notes"} <= set(found)
    (phase,) = found["phases"]
    assert {"phase", "fault", "seconds", "wakes", "memory", "healing", "overload", "unproven"} <= set(phase)
    assert {"offered", "complete", "degraded", "failed", "shed", "stuck", "latency_ms"} <= set(phase["wakes"])
    assert set(phase["wakes"]["latency_ms"]) == {"p50", "p99", "p999", "max"}
    assert phase["overload"]["goodput_share"] == 0.9
    assert msgspec.json.decode(msgspec.json.encode(found), type=ChaosReport).phases[0].wakes == WAKES


def test_a_person_sees_a_line_for_each_phase() -> None:
    text = text_of(phase_with("healthy"), phase_with("stopped"))
    assert "1,000 wakes a second" in text and "deadline 100 ms" in text
    (line,) = [line for line in text.splitlines() if line.startswith("│ stopped")]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["stopped", "6,000", "5,000", "900", "100", "250", "1.2", "102.4", "103.5", "1,234.6", "1.6"]
    assert "stopped: something was done" in text
    assert "every wake ended; p99 of those past their deadline 3.5 ms past it, 7.7 at most" in text
    assert "Note: it rained" in text
    in_time = msgspec.structs.replace(WAKES, past_deadline_ms=None)
    assert "healthy: every wake ended by its deadline" in text_of(phase_with("healthy", wakes=in_time))


def test_unproven_phase_is_shown() -> None:
    text = text_of(unproven_phase("cut-off", "only root may drop packets"))
    assert "unproven" in text
    assert "cut-off: left unproven: only root may drop packets" in text


def test_when_all_was_well_again() -> None:
    def healed(last_incomplete_ms: float | None) -> str:
        return text_of(phase_with("after", healing=Healing("after SIGCONT", last_incomplete_ms)))

    assert "after SIGCONT every wake was complete" in healed(0.0)
    assert "after SIGCONT the last wake that was not complete began 1,500 ms later" in healed(1_500.0)
    assert "after SIGCONT wakes were not complete again by the end" in healed(None)


def test_what_is_stuck_or_unsent_is_said() -> None:
    text = text_of(phase_with("flapping", wakes=msgspec.structs.replace(WAKES, stuck=3, unsent=4)))
    assert "3 wakes were STUCK" in text and "4 wakes were not asked for any more" in text
    assert "every wake ended" not in text
    assert "50.0 MiB before, 60.0 at most, 51.0 after" in text


def test_overload_is_told_in_words() -> None:
    text = text_of(phase_with("overload", overload=OVERLOAD))
    assert "best goodput 5,000/s, offered 3.0 times that, 15,000/s; goodput then 4,500/s: 0.90 of the best" in text
    assert "missed" not in text
    assert "shed ones were told after 0.3, p99 2.5 ms" in text
    assert "12.0 and 30.0 ms before, 13.0 and 31.0 ms from two seconds after the load on" in text
    bad = msgspec.structs.replace(OVERLOAD, goodput_share=0.1)
    nothing_shed = msgspec.structs.replace(WAKES, shed_ms=None)
    text = text_of(phase_with("overload", overload=bad, wakes=nothing_shed))
    assert "0.10 of the best; must be 0.8 at least: missed" in text and "nothing was shed" in text


def test_phase_without_ends_is_shown() -> None:
    empty = WakeCounts(5, 0, 0, 0, 0, 5, 0, None, None, None, None, None)
    dead = msgspec.structs.replace(OVERLOAD, best_per_s=0.0, goodput_share=0.0, before_ms=None, after_ms=None)
    assert "5 wakes were STUCK" in text_of(phase_with("overload", wakes=empty, overload=dead))
