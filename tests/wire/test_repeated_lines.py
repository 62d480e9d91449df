"""Lines that come again and again are shown once, and then as a count."""

import logging
import time

import pytest

from dawnchorus.wire.repeated_lines import EVERY_S, VARIANTS_MAX, RepeatedLines, limited_logger


class Shown(logging.Handler):
    """Keeps what it is given."""

    def __init__(self, shown: list[tuple[str, int]]) -> None:
        super().__init__()
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        self._shown.append((record.getMessage(), getattr(record, "repeated", 0)))


class Lines:
    """A logger with the filter, and what came through."""

    def __init__(self) -> None:
        self.now = 100.0
        self.shown: list[tuple[str, int]] = []
        self.filter = RepeatedLines(lambda: self.now)
        self.log = logging.getLogger(f"tests.{id(self)}")
        self.log.setLevel(logging.INFO)
        self.handler = Shown(self.shown)
        self.handler.addFilter(self.filter)
        self.log.addHandler(self.handler)

    def fail(self, times: int, **facts: object) -> None:
        for _ in range(times):
            self.log.error("shard fails", extra=facts)

    def tell_counts(self) -> None:
        for record in self.filter.take_counts():
            self.handler.handle(record)


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_repeated_line_is_shown_once_and_counted(lines: Lines) -> None:
    lines.fail(1_000, store="live", shard=1, detail="no space")
    assert lines.shown == [("shard fails", 0)]
    lines.now += EVERY_S - 1
    lines.tell_counts()
    assert len(lines.shown) == 1
    lines.now += 1
    lines.tell_counts()
    assert lines.shown[1:] == [("shard fails", 999)]
    lines.tell_counts()
    lines.now += 10 * EVERY_S
    lines.tell_counts()
    assert len(lines.shown) == 2, "what does not repeat is not counted"


def test_next_line_says_how_many_were_held(lines: Lines) -> None:
    lines.fail(5, detail="no space")
    lines.now += EVERY_S
    lines.fail(5, detail="no space")
    assert lines.shown == [("shard fails", 0), ("shard fails", 4)]


def test_each_shard_and_each_reason_has_its_line(lines: Lines) -> None:
    for shard in range(3):
        for detail in ("no space", "corrupt"):
            lines.fail(7, store="live", shard=shard, detail=detail)
    assert lines.shown == [("shard fails", 0)] * 6


def test_lines_that_always_differ_are_bounded_too(lines: Lines) -> None:
    for number in range(10_000):
        lines.fail(1, detail=f"reason {number}")
    assert len(lines.shown) == VARIANTS_MAX + 1
    lines.now += EVERY_S
    lines.tell_counts()
    assert sum(repeated for _, repeated in lines.shown) == 10_000 - VARIANTS_MAX - 1


def test_rare_lines_and_other_events_are_shown(lines: Lines) -> None:
    for _ in range(3):
        lines.log.info("shard backed up")
        lines.log.warning("one")
        lines.log.warning("two")
    assert [text for text, _ in lines.shown].count("shard backed up") == 3
    assert len(lines.shown) == 5


def test_exceptions_are_distinguished_by_their_place(lines: Lines) -> None:
    def fail(where: int) -> None:
        if where:
            raise ValueError(where)
        raise KeyError

    for number in (0, 1, 0, 1, 2):
        try:
            fail(number)
        except (ValueError, KeyError):
            lines.log.exception("request fails")
    assert len(lines.shown) == 2


def test_a_librarys_lines_say_the_count_themselves(lines: Lines) -> None:
    lines.handler.removeFilter(lines.filter)
    log = limited_logger(f"tests.{id(lines)}.router")
    log.addHandler(lines.handler)
    log.propagate = False
    [limit] = log.filters
    assert isinstance(limit, RepeatedLines)
    for _ in range(5):
        log.warning("reply is ignored: %s", "late")
    assert [text for text, _ in lines.shown] == ["reply is ignored: late"]
    limit._monotonic = lambda: time.monotonic() + EVERY_S  # pyright: ignore[reportPrivateUsage]
    log.warning("reply is ignored: %s", "late")
    assert [text for text, _ in lines.shown][1:] == ["reply is ignored: late (4 times more since)"]


def test_all_counts_are_shown_at_the_end(lines: Lines) -> None:
    lines.fail(3)
    assert [record.__dict__["repeated"] for record in lines.filter.take_counts(all_of_them=True)] == [2]
