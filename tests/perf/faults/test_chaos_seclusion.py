"""A network of one's own and packets dropped in it; for real where that is permitted, in processes of their own."""

import os
import subprocess
import sys

import pytest

from dawnchorus.perf.faults.seclusion import CannotSeclude, packets_dropped, why_not

PROGRAM = """
import asyncio, os
from dawnchorus.perf.faults.seclusion import packets_dropped, seclude

network = os.readlink("/proc/self/ns/net")
seclude()
assert os.readlink("/proc/self/ns/net") != network

async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"1")
    assert await reader.readexactly(1) == b"1"
    try:
        async with packets_dropped(port):
            writer.write(b"2")
            reading = asyncio.ensure_future(reader.readexactly(1))
            await asyncio.sleep(0.3)
            assert not reading.done(), "neither answered nor closed"
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert await reading == b"2", "sent again by TCP, and let through"
    writer.close()
    server.close()
    print("dropped")

asyncio.run(main())
"""

needs_root = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@needs_root
def test_packets_are_dropped_in_own_network_only() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    if "could not be made" in ended.stderr or "nft rejects" in ended.stderr:
        pytest.skip(f"not permitted here: {ended.stderr.strip().splitlines()[-1]}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "dropped\n"


async def test_a_process_that_shares_its_network_drops_nothing() -> None:
    with pytest.raises(CannotSeclude, match="a network of one's own"):
        async with packets_dropped(1):
            pytest.fail("packets of others would have been dropped")


def test_why_packets_cannot_be_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert why_not() == "only root may drop packets"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", no_program)
    assert "apt-get install nftables" in str(why_not())


def no_program(_name: str, path: str = "") -> None:
    """Find no program, as `shutil.which` if there is none."""
