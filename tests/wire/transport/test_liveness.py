"""Silence: reported in full ticks, and ended by any frame."""

from dawnchorus.wire.transport.liveness import LIVENESS_TICK_S, SILENT_TICKS, Silence, is_asked


def test_silence_is_reported_within_four_seconds_after_asking() -> None:
    # The last frame may have come right before a tick, or right after one.
    assert 2.5 < SILENT_TICKS * LIVENESS_TICK_S < (SILENT_TICKS + 1) * LIVENESS_TICK_S < 4.0
    silence = Silence()
    asked = [is_asked(silence.handle_tick()) for _ in range(SILENT_TICKS + 1)]
    assert asked == [False, *[True] * SILENT_TICKS]
    assert silence.ticks == SILENT_TICKS


def test_any_frame_ends_silence() -> None:
    silence = Silence()
    for _ in range(5):
        silence.handle_tick()
    silence.heard = True
    assert [silence.handle_tick() for _ in range(3)] == [0, 1, 2]


def test_long_silent_end_is_asked_some_hundred_times() -> None:
    silence = Silence()
    asked = sum(is_asked(silence.handle_tick()) for _ in range(int(3_600 / LIVENESS_TICK_S)))
    assert 100 < asked < 1_000
