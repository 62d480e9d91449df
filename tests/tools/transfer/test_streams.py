"""Lines in pieces of any size, and files that appear complete or not at all."""

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dawnchorus.tools.transfer import streams
from dawnchorus.tools.transfer.streams import InputLine, LineReader, OutputFile


def read_all(reader: LineReader) -> list[InputLine]:
    """Return every line of the reader, in order."""
    lines: list[InputLine] = []
    while (piece := reader.read()) is not None:
        lines += piece
    return lines


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"0123456789"]), max_size=30), st.integers(1, 8))
def test_lines_are_same_in_any_pieces(parts: list[bytes], piece_bytes: int) -> None:
    content, longest = b"".join(parts), 9
    receiving, sending = os.pipe()
    os.write(sending, content)
    os.close(sending)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_READ_BYTES", piece_bytes)
        lines = read_all(LineReader(f"/dev/fd/{receiving}", longest))
    os.close(receiving)
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert lines == [
        InputLine(number, text if len(text) <= longest else None) for number, text in enumerate(expected, 1)
    ]


def test_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "agents.ndjson"
    path.write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")
    reader = LineReader(str(path), 100)
    assert reader.bytes_total == 13
    assert read_all(reader) == [InputLine(1, b"one"), InputLine(2, b"\xef\xbb\xbftwo")]
    assert reader.bytes_read == 13
    assert reader.read() is None


def test_line_is_given_before_the_next() -> None:
    receiving, sending = os.pipe()
    reader = LineReader(f"/dev/fd/{receiving}", 100)
    assert reader.bytes_total is None
    os.write(sending, b"one\ntw")
    assert reader.read() == [InputLine(1, b"one")]
    os.write(sending, b"o")
    assert reader.read() == []
    os.close(sending)
    assert reader.read() == [InputLine(2, b"two")]
    assert reader.read() is None
    os.close(receiving)


def test_file_keeps_content_until_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agents.ndjson"
    path.write_text("before")
    path.chmod(0o640)
    discarded = OutputFile(str(path))
    discarded.write(b"half")
    assert path.read_text() == "before"
    discarded.discard()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    output = OutputFile(str(path))
    output.write(b"af")
    output.write(b"ter")
    output.commit()
    output.discard()
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_link_keeps_pointing_to_replaced_file(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    output = OutputFile(str(link))
    output.write(b"after")
    output.commit()
    assert link.is_symlink()
    assert target.read_text() == "after"


def test_devices_and_pipes_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    reader.start()
    output = OutputFile(str(path))
    output.write(b"through")
    output.commit()
    output.discard()
    os.close(output.descriptor)
    reader.join()
    assert read == [b"through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_directory_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        OutputFile(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_full_pipe_is_waited_for() -> None:
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    content = bytes(range(256)) * 4096
    read: list[bytes] = []

    def drain() -> None:
        while piece := os.read(receiving, 1 << 16):
            read.append(piece)

    drainer = threading.Thread(target=drain, daemon=True)
    drainer.start()
    output = OutputFile(f"/proc/self/fd/{sending}")
    os.set_blocking(output.descriptor, False)
    output.write(content)
    os.close(output.descriptor)
    os.close(sending)
    drainer.join()
    os.close(receiving)
    assert b"".join(read) == content
