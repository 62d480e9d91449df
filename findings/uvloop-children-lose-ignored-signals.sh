#!/usr/bin/env bash
# uvloop gives every child process the default action for every signal; asyncio's own loops let it inherit ignored ones.
#
# Versions: uvloop 0.23.0, CPython 3.11 on Linux.
# Seen: a parent that ignores SIGHUP (as `nohup` has it) starts the same child on both loops with
#   asyncio.create_subprocess_exec. Under asyncio the child ignores SIGHUP too, as after any fork and exec; under uvloop
#   it has the default action and is ended by it. (libuv resets all dispositions between fork and exec.) uvloop's
#   documentation calls it a drop-in replacement and names no such difference; `restore_signals=False` changes nothing.
# One would guess: the same child either way; POSIX keeps ignored signals ignored across exec, and nohup rests on it.
# Whom it hurts: supervisors and job runners on uvloop that are started with nohup, or with `trap '' INT` by a script in
#   the background: they live on, and their children die when the terminal goes or Ctrl-C is pressed.
# Exits 0 if this is still so, 1 if not.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
cat > "$work/inherit.py" <<'PROGRAM'
import asyncio
import signal
import sys

import uvloop

CHILD = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('lives on')"


async def start() -> str:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, stdout=asyncio.subprocess.PIPE, restore_signals=False
    )
    said, _ = await child.communicate()
    return said.decode().strip() or f"was ended by {signal.Signals(-child.returncode).name}"


signal.signal(signal.SIGHUP, signal.SIG_IGN)
with asyncio.Runner() as runner:
    theirs = runner.run(start())
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    ours = runner.run(start())
print(f"asyncio: the child {theirs}; uvloop: the child {ours}")
sys.exit(0 if (theirs, ours) == ("lives on", "was ended by SIGHUP") else 1)
PROGRAM
"$work/venv/bin/python" "$work/inherit.py"
