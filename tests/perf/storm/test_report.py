"""The report: the JSON object that programs read, and the table for people."""

import io
import json

import msgspec
import pytest
from rich.console import Console

from dawnchorus.perf.storm.report import StormReport, render, targets_of
from tests.support.reports import PEERS, storm_report

NO_REDIS = msgspec.structs.replace(PEERS, redis_mget_ms=None, redis_packed_ms=None, redis_task_per_agent_ms=None)


def text_of(report: StormReport) -> str:
    """Return the report as a terminal of 140 columns shows it."""
    console = Console(file=io.StringIO(), width=140)
    console.print(render(report))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_json_object_has_every_promised_key() -> None:
    found = json.loads(msgspec.json.encode(storm_report(PEERS)))
    promised = (
        "agents wake fragments value_bytes topology runs wake_many_ms task_per_agent_ms single_us closed_loop_per_s"
    )
    assert set(promised.split()) | {"peers", "ratios"} <= set(found)
    assert set(found["wake_many_ms"]) == set(found["task_per_agent_ms"]) == {"min", "p50", "max"}
    assert set(found["single_us"]) == set(found["peers"]["raw_echo_us"]) == {"p50", "p99"}
    assert {"redis_mget_ms", "redis_packed_ms", "redis_task_per_agent_ms", "raw_zmq_ms", "raw_echo_us"} <= set(
        found["peers"]
    )
    ratios = "wake_many_to_redis wake_many_to_redis_packed task_per_agent_to_redis wake_many_to_raw single_to_raw_echo"
    assert set(ratios.split()) <= set(found["ratios"])


def test_ratios_are_of_medians() -> None:
    ratios = storm_report(PEERS).ratios
    assert ratios.wake_many_to_redis == 0.12
    assert ratios.wake_many_to_redis_packed == 0.3
    assert ratios.task_per_agent_to_redis == 0.1
    assert ratios.wake_many_to_raw == 1.5
    assert ratios.single_to_raw_echo == 1.5
    # 10,000 in 1.2 s are 8,333 wakes/s.
    assert ratios.closed_loop_to_redis_task_per_agent == 12.0


def test_a_person_sees_times_ratios_and_targets() -> None:
    text = text_of(storm_report(PEERS))
    assert "10,000 agents woken of 100,000 asleep" in text
    assert "30.0 ms" in text and "333,333" in text
    assert "3.3 times as fast" in text
    assert "must is missed" not in text
    assert "<= 0.5" in text and ">= 10" in text


@pytest.mark.parametrize("topology", ["one-store", "default"])
def test_a_missed_target_is_said(topology: str) -> None:
    slow = msgspec.structs.replace(storm_report(PEERS).ratios, wake_many_to_redis_packed=0.8)
    assert "must is missed" in text_of(storm_report(PEERS, ratios=slow, topology=topology))


def test_targets_hold_for_their_sizes_only() -> None:
    assert targets_of(storm_report(PEERS))["wake_many_to_raw"].aim == 1.4
    assert not targets_of(storm_report(PEERS, agents=1000))
    assert set(targets_of(storm_report(PEERS, topology="five-stores"))) == {"wake_many_to_redis"}
    assert "must" not in text_of(storm_report(PEERS, agents=1000))


def test_missing_redis_is_said_and_hides_nothing_else() -> None:
    report = storm_report(NO_REDIS, redis_batches=None, notes=["Redis was not measured: it is not installed"])
    found = json.loads(msgspec.json.encode(report))
    assert found["peers"]["redis_packed_ms"] is None
    assert found["ratios"]["wake_many_to_redis_packed"] is None
    assert found["ratios"]["wake_many_to_raw"] == 1.5
    text = text_of(report)
    assert "Note: Redis was not measured: it is not installed" in text
    assert "not measured" in text
