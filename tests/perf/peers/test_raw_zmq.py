"""The limits: real processes, the sizes asked for, and nothing left behind."""

from pathlib import Path

import pytest

from dawnchorus.perf.harness.child_process import ChildFailed
from dawnchorus.perf.peers.raw_zmq import raw_echo, raw_storm
from tests.support.children import children_left


async def test_a_raw_storm_moves_the_bytes_asked_for(tmp_path: Path) -> None:
    async with raw_storm(tmp_path, servers=2, total_bytes=5 << 20, total_requests_bytes=1000) as storm:
        for _ in range(3):
            for run in (storm.run, storm.run_uncopied):
                frames = await run()
                assert len(set(frames)) == len(frames) == storm.frames == 5
                assert sum(len(frame) for frame in frames) == 5 << 20
    assert not children_left()


async def test_every_raw_server_is_asked_for_little(tmp_path: Path) -> None:
    async with raw_storm(tmp_path, servers=5, total_bytes=1000, total_requests_bytes=10) as storm:
        assert [len(frame) for frame in await storm.run()] == [200] * 5


async def test_echo_with_file_writes_before_answering(tmp_path: Path) -> None:
    file = tmp_path / "synced"
    async with raw_echo(tmp_path, reply_bytes=40, request_bytes=600, synced_file=file) as echo:
        before = file.read_bytes()
        block = before[:4096]
        assert before == block * (len(before) // 4096)
        assert len(await echo.run(20)) == 20
        assert file.stat().st_mtime_ns > 0
    assert not children_left()


async def test_the_echo_times_each_exchange(tmp_path: Path) -> None:
    async with raw_echo(tmp_path, reply_bytes=2700) as echo:
        times = await echo.run(200)
        assert len(times) == 200
        assert all(0 < nanoseconds < 10**9 for nanoseconds in times)
    assert not children_left()


async def test_failed_server_is_named_with_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dawnchorus.perf.peers.raw_zmq._SERVER_MODULE", "dawnchorus.no_such_server")
    with pytest.raises(ChildFailed, match=r"raw-echo ended with code 1: .*no_such_server"):
        async with raw_echo(tmp_path, reply_bytes=10):
            pass
