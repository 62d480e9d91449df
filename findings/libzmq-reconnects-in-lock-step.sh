#!/usr/bin/env bash
# pyzmq 27.3.0 (libzmq 4.3.5, Linux): the pauses between attempts to connect are drawn by no chance at all.
#
# Seen, for ZMQ_RECONNECT_IVL = 100 (the pauses that ZMQ_EVENT_CONNECT_RETRIED tells), in two processes:
#   refused, no maximum:          183, 125, 141, ... in both: a random number that nobody has seeded
#   refused, maximum of 800:      100, 200, 400, 800, 800 in both: with ZMQ_RECONNECT_IVL_MAX there is no random part
#   accepted and hung up at once: 100 again and again, also with the maximum: accepting counts as reached
# One would guess from zmq_setsockopt(3) (a random back-off for ZMQ_RECONNECT_IVL, "to prevent reconnection storms") that
# each process draws its own, that a maximum only bounds a growing pause that is still drawn, and that a peer which hangs
# up does not count as reached.
# Whom it hurts: the clients of a server that restarts come back in lock step; a server that is out of resources and
# hangs up is tried at the shortest pause by everybody.
# Exits 0 if this is still so, 1 if not.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyzmq==27.3.0
cat > "$work/pauses.py" <<'PYTHON'
import json
import socket
import threading

import zmq
from zmq.utils.monitor import recv_monitor_message


def pauses(port, maximum, count):
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.reconnect_ivl = 100
    if maximum:
        dealer.reconnect_ivl_max = maximum
    monitor = dealer.get_monitor_socket(zmq.EVENT_CONNECT_RETRIED)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    told = []
    while len(told) < count and monitor.poll(5_000):
        told.append(int(recv_monitor_message(monitor)["value"]))
    dealer.disable_monitor()
    monitor.close()
    dealer.close()
    context.term()
    return told


with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    nobody = probe.getsockname()[1]
listener = socket.create_server(("127.0.0.1", 0))


def hang_up():
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


threading.Thread(target=hang_up, daemon=True).start()
without = pauses(nobody, 0, 6)
with_maximum = pauses(nobody, 800, 5)
hung_up = pauses(listener.getsockname()[1], 800, 6)
print(json.dumps([without, with_maximum, hung_up]))
PYTHON
first=$("$work/venv/bin/python" "$work/pauses.py")
second=$("$work/venv/bin/python" "$work/pauses.py")
printf 'one process:   %s\nanother:       %s\n' "$first" "$second"
"$work/venv/bin/python" - "$first" "$second" <<'PYTHON'
import json
import sys

first, second = (json.loads(told) for told in sys.argv[1:])
without, with_maximum, hung_up = first
still = (
    first == second
    and len(set(without)) > 1
    and with_maximum == [100, 200, 400, 800, 800]
    and len(hung_up) == 6
    and set(hung_up) == {100}
)
sys.exit(0 if still else 1)
PYTHON
