"""A network namespace of one's own, and packets dropped in it without a word to anyone.

A connection that is cut off like this is not closed: what is sent vanishes, and no end learns of it (nft(8), verdict
`drop`). Rules of the packet filter are of a whole network, so this is only ever done in a namespace made for it
(network_namespaces(7)), which has nothing but its own loopback and is gone with the last process in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncGenerator
from typing import Final

from ...wire.errors import DawnchorusError

__all__ = ["CannotSeclude", "packets_dropped", "seclude", "why_not"]

_CLONE_NEWNET: Final = 0x40000000
"""From linux/sched.h: unshare(2) into a new network namespace."""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
"""Reading and writing the flags of an interface (netdevice(7))."""

_TABLE: Final = "inet dawnchorus_chaos"

_NFT_SECONDS: Final = 20.0

_process = {"secluded": False}
"""Whether `seclude` has succeeded: no rule is ever written where others' packets pass."""


class CannotSeclude(DawnchorusError):
    """Packets cannot be dropped here; the message says why, as the end of a sentence."""


def why_not() -> str | None:
    """Return why packets certainly cannot be dropped here, None where it is worth a try."""
    if os.geteuid() != 0:
        return "only root may drop packets"
    if _nft() is None:
        return "there is no nft (on Debian: apt-get install nftables)"
    return None


def seclude() -> None:
    """Move this thread, and the processes and threads that it makes from now on, into a new network with loopback only.

    To be called before any thread is started. There is no way back.

    Raises:
        CannotSeclude: it is not permitted, or not here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        unshare = libc.unshare
    except AttributeError:
        raise CannotSeclude("this system has no unshare(2)") from None
    if unshare(_CLONE_NEWNET):
        raise CannotSeclude(f"no network namespace could be made: {os.strerror(ctypes.get_errno())}")
    _process["secluded"] = True
    try:
        _bring_loopback_up()
    except OSError as error:
        raise CannotSeclude(f"the loopback of a new network could not be brought up: {error.strerror}") from None


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | _IFF_UP))


@contextlib.asynccontextmanager
async def packets_dropped(port: int) -> AsyncGenerator[None]:
    """Drop every TCP packet from and to this port while the block runs; in a secluded process only.

    Raises:
        CannotSeclude: this process is not secluded; the kernel or nft rejects.
    """
    if not _process["secluded"]:
        raise CannotSeclude("packets are only dropped in a network of one's own")
    rules = f"""
        table {_TABLE} {{
            chain dropped {{
                type filter hook input priority 0; policy accept;
                tcp dport {port} drop
                tcp sport {port} drop
            }}
        }}
    """
    await _run_nft(rules)
    try:
        yield
    finally:
        # Not cut short by a cancellation: what runs on in the namespace shall find it whole.
        await asyncio.shield(_run_nft(f"delete table {_TABLE}\n"))


async def _run_nft(rules: str) -> None:
    nft = _nft()
    if nft is None:
        raise CannotSeclude("there is no nft")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [nft, "-f", "-"], input=rules, capture_output=True, text=True, timeout=_NFT_SECONDS, check=False
        )

    try:
        ended = await asyncio.to_thread(run)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotSeclude(f"nft could not be run: {error}") from None
    if ended.returncode:
        raise CannotSeclude(f"nft rejects: {ended.stderr.strip()}")


def _nft() -> str | None:
    # Users who are not root often lack the directories of system programs in their path.
    return shutil.which("nft", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
