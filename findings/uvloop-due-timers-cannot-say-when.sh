#!/usr/bin/env bash
# uvloop's call_at gives a timer that is due already as another class, one that has no `when`.
#
# Versions: uvloop 0.23.0, CPython 3.11 on Linux.
# Seen: loop.call_at(time, ...) returns a TimerHandle whose when() says the time, unless the time has come or is less
#   than half a millisecond away: then it returns a Handle without that method, and asyncio's own loop a TimerHandle in
#   each case. (https://github.com/MagicStack/uvloop/issues/482, open.)
# One would guess, from asyncio's documentation (call_at and call_later return asyncio.TimerHandle): the same class for
#   every time.
# Whom it hurts: programs that keep one timer for what is due next and replace it where something is due sooner
#   (`if at < timer.when()`): they work until a timer is set that is due at once, and then raise AttributeError, in a
#   server under load mostly. Keep the time beside the timer.
# Exits 0 if this is still so, 1 if not.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
cat > "$work/when.py" <<'PROGRAM'
import asyncio

import uvloop


async def can_say_when() -> list[bool]:
    loop = asyncio.get_running_loop()
    timers = [loop.call_at(loop.time() + seconds, print) for seconds in (1.0, 0.0003, -1.0)]
    found = [hasattr(timer, "when") for timer in timers]
    for timer in timers:
        timer.cancel()
    return found


def run(make_loop: object) -> list[bool]:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(can_say_when())


plain, fast = run(asyncio.new_event_loop), run(uvloop.new_event_loop)
print(f"asyncio: in a second {plain[0]}, in 0.3 ms {plain[1]}, a second ago {plain[2]}")
print(f"uvloop:  in a second {fast[0]}, in 0.3 ms {fast[1]}, a second ago {fast[2]}")
raise SystemExit(0 if plain == [True, True, True] and fast == [True, False, False] else 1)
PROGRAM
"$work/venv/bin/python" "$work/when.py"
