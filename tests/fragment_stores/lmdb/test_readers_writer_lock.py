"""The readers-writer lock: many readers at once, or one writer alone."""

import threading
import time

from dawnchorus.fragment_stores.lmdb.readers_writer_lock import Gate


def test_lock_is_exclusive_only_without_readers() -> None:
    gate = Gate()
    with gate.alone(0.001) as alone:
        assert alone
    gate.enter()
    with gate.passed(), gate.alone(0.001) as alone:
        assert not alone
    gate.leave()
    with gate.alone(0.001) as alone:
        assert alone


def test_waiting_writer_gets_lock_despite_new_readers() -> None:
    gate = Gate()
    ended = threading.Event()
    inside = [0, 0, 0]

    def come_and_go(number: int) -> None:
        while not ended.is_set():
            with gate.passed():
                inside[number] = 1
                time.sleep(0.0005)
                inside[number] = 0

    comers = [threading.Thread(target=come_and_go, args=(number,)) for number in range(len(inside))]
    for comer in comers:
        comer.start()
    try:
        for _ in range(20):
            with gate.alone(30.0) as alone:
                assert alone
                assert inside == [0, 0, 0]
                time.sleep(0.001)
                assert inside == [0, 0, 0]
    finally:
        ended.set()
        for comer in comers:
            comer.join()


def test_reader_gets_lock_after_writer_gave_up() -> None:
    gate = Gate()
    gate.enter()
    came = threading.Event()
    waiting = threading.Event()

    def come() -> None:
        waiting.wait()
        with gate.passed():
            came.set()

    comer = threading.Thread(target=come)
    comer.start()
    waiting.set()
    with gate.alone(0.01) as alone:
        assert not alone
    comer.join(60)
    assert came.is_set()
    gate.leave()
