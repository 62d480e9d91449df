"""The directory of a node's Unix socket: the first that is its user's alone and can be written."""

import os
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest

from dawnchorus.nodes import runtime_directory
from dawnchorus.nodes.runtime_directory import ipc_endpoint, runtime_directories
from tests.tools.command_line import COMMAND, PATIENCE_S, environment, write_topology


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The candidate directories; the last is that of the data."""
    found = [tmp_path / name for name in ("first", "second", "data")]

    def directories(*_: object) -> list[Path]:
        return found

    monkeypatch.setattr(runtime_directory, "runtime_directories", directories)
    return found


def test_first_usable_directory_is_made_private(bases: list[Path]) -> None:
    assert ipc_endpoint("x.ipc", "data") == f"ipc://{bases[0]}/x.ipc"
    assert bases[0].stat().st_mode & 0o777 == 0o700 and not bases[1].exists()


def test_directory_open_to_others_or_unwritable_is_unusable(
    bases: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    bases[0].mkdir(mode=0o755)
    bases[1].write_text("no directory")
    with caplog.at_level("INFO"):
        assert ipc_endpoint("x.ipc", "data") == f"ipc://{bases[2]}/x.ipc"
    assert [record.getMessage() for record in caplog.records] == ["unix socket is elsewhere"]


def test_missing_directory_means_no_socket_logged_once(bases: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    bases[:] = [bases[0] / ("x" * 100), Path("/proc/nowhere")]
    assert ipc_endpoint("x.ipc", "data") == ""
    (record,) = caplog.records
    assert record.getMessage() == "no unix socket: clients use TCP"
    detail = vars(record)["detail"]
    assert "too long for a socket" in detail and "/proc/nowhere" in detail


def test_session_runtime_directory_is_first_data_directory_last() -> None:
    user = f"dawnchorus-{os.getuid()}"
    found = runtime_directories("/data", {"XDG_RUNTIME_DIR": "/run/user/7", "TMPDIR": "/scratch"})
    assert found == [
        Path("/run/user/7/dawnchorus"),
        Path("/scratch", user),
        Path("/tmp", user),
        Path("/var/tmp", user),
        Path("/data/.sockets"),
    ]
    assert runtime_directories("/data", {"TMPDIR": "relative"})[0] == Path("/tmp", user)


UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def _may_make_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "mount", "--rbind", "/", "/"], capture_output=True, check=False).returncode == 0


READ_ONLY = """
mount --bind "$DATA" "$DATA"
for place in $(awk '{ print $5 }' /proc/self/mountinfo | grep -v "^$DATA"); do
    mount -o remount,bind,ro "$place" 2> /dev/null || mount -o remount,ro "$place" 2> /dev/null || :
done
touch / 2> /dev/null && exit 77
cd "$DATA" && exec $D node live-1 --topology "$TOPOLOGY"
"""


@pytest.mark.skipif(not _may_make_namespaces(), reason="this host permits no mount namespace of one's own")
def test_node_serves_with_only_its_data_directory_writable(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    settings = environment(DATA=str(data), TOPOLOGY=str(write_topology(tmp_path)), D=" ".join(COMMAND))
    settings = {name: value for name, value in settings.items() if name not in {"XDG_RUNTIME_DIR", "TMPDIR"}}
    command = [*UNSHARE, "sh", "-c", READ_ONLY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings) as node:
        assert node.stdout is not None
        line = node.stdout.readline()
        node.terminate()
        _, log = node.communicate(timeout=PATIENCE_S)
    if node.returncode == 77:
        pytest.skip("the root cannot be made read-only here")
    assert line and orjson.loads(line)["event"] == "serving", log.decode()
    assert node.returncode == 0
    events = [orjson.loads(said)["event"] for said in log.splitlines()]
    assert {"unix socket is elsewhere", "no unix socket: clients use TCP"} & set(events)
