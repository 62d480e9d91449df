"""Output that no process waits for: pipes that are read late, never or no more."""

import os
import threading
from collections.abc import Generator

import pytest

from dawnchorus.nodes.bounded_output import BoundedOutput, write_all

PATIENCE_S = 60.0


class Reader:
    """A reader that takes items one by one, each when allowed to, and fails while `error` is set."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.open = threading.Event()
        self.at_work = threading.Event()
        self.error: OSError | None = None

    def write(self, item: str) -> None:
        self.at_work.set()
        assert self.open.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.taken.append(item)


@pytest.fixture
def reader() -> Generator[Reader]:
    made = Reader()
    yield made
    made.error = None
    made.open.set()


def output_to(reader: Reader, bytes_max: int = 30) -> BoundedOutput[str]:
    return BoundedOutput(reader.write, lambda dropped: f"{dropped} dropped", bytes_max=bytes_max)


def test_items_are_written_in_order(reader: Reader) -> None:
    output = output_to(reader, 10_000)
    reader.open.set()
    for number in range(1_000):
        output.put(str(number), 10)
    assert output.close(PATIENCE_S)
    assert reader.taken == [str(number) for number in range(1_000)] and output.dropped == 0


def test_put_never_blocks_and_dropped_items_are_counted(reader: Reader) -> None:
    output = output_to(reader)
    output.put("first", 10)
    assert reader.at_work.wait(PATIENCE_S)
    for number in range(100):
        output.put(str(number), 10)
    assert output.dropped == 97
    reader.open.set()
    assert output.close(PATIENCE_S)
    assert reader.taken == ["first", "0", "1", "2", "97 dropped"], "it says so though nothing comes after it"


def test_gap_is_reported_in_its_place(reader: Reader) -> None:
    output = output_to(reader)
    output.put("first", 10)
    assert reader.at_work.wait(PATIENCE_S)
    for item in ("a", "b", "c", "lost", "lost"):
        output.put(item, 10)
    reader.open.set()
    while "c" not in reader.taken:
        pass
    output.put("last", 10)
    assert output.close(PATIENCE_S)
    assert reader.taken == ["first", "a", "b", "c", "2 dropped", "last"]


def test_failed_writes_are_counted_until_writing_works_again(reader: Reader) -> None:
    output = output_to(reader, 10_000)
    reader.open.set()
    reader.error = OSError("no space left")
    for _ in range(50):
        output.put("lost", 10)
    while output.dropped < 50:
        pass
    reader.error = None
    output.put("found", 10)
    assert output.close(PATIENCE_S)
    assert reader.taken == ["50 dropped", "found"]


def test_close_does_not_wait_for_stuck_reader(reader: Reader) -> None:
    output = output_to(reader)
    output.put("first", 10)
    assert output.close(0.01) is False
    output.put("too late", 10)
    assert output.dropped == 1


def test_unused_output_starts_no_thread(reader: Reader) -> None:
    before = threading.active_count()
    assert output_to(reader).close(PATIENCE_S)
    assert threading.active_count() == before


def test_non_blocking_pipe_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    content = os.urandom(1 << 20)
    written = threading.Thread(target=write_all, args=(writing, content))
    written.start()
    read = b""
    while len(read) < len(content):
        read += os.read(reading, 1 << 20)
    written.join(PATIENCE_S)
    assert read == content
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        write_all(writing, b"x")
    os.close(writing)
