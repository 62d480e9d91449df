#!/usr/bin/env bash
# pyzmq 27.3.0 (libzmq 4.3.5): zmq_unbind of a TCP endpoint does not only stop accepting: it cuts off the connections
# that came in there, and their other ends are not told.
#
# Seen: a ROUTER that has unbound its endpoint cannot answer the DEALER that it has just heard (EHOSTUNREACH), hears
# nothing more of it, and the DEALER's monitor tells no ZMQ_EVENT_DISCONNECTED within two seconds.
# One would guess from zmq_unbind(3) ("unbind a socket from the endpoint") and from listening sockets elsewhere (closing
# one leaves accepted connections alone) that a server can stop taking new clients by it and serve on those it has.
# Whom it hurts: whoever drains a server, or sheds new clients, by unbinding.
# Exits 0 if this is still so, 1 if not.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyzmq==27.3.0
"$work/venv/bin/python" - <<'PYTHON'
import sys

import zmq

context = zmq.Context()
router = context.socket(zmq.ROUTER)
router.router_mandatory = 1
port = router.bind_to_random_port("tcp://127.0.0.1")
dealer = context.socket(zmq.DEALER)
monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
dealer.connect(f"tcp://127.0.0.1:{port}")
dealer.send(b"question")
identity, question = router.recv_multipart()
router.unbind(f"tcp://127.0.0.1:{port}")
told = bool(monitor.poll(2_000))
try:
    router.send_multipart([identity, b"answer"])
    answered = True
except zmq.ZMQError as error:
    answered = False
    print("the answer:", error)
dealer.send(b"another question")
heard = bool(router.poll(1_000))
print("libzmq", zmq.zmq_version(), "answered:", answered, "heard again:", heard, "the other end was told:", told)
dealer.disable_monitor()
context.destroy(linger=0)
sys.exit(0 if not answered and not heard else 1)
PYTHON
