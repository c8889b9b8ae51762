"""Work in the background of a page: what it tells arrives, it can be interrupted, and a lock is taken in turn."""

import threading
import time

import pytest

from pages.background import Interrupted, Stops, Turns, telling


def test_everything_told_arrives_in_order():
    def work(tell):
        for i in range(50):
            tell(i)

    assert [i for batch in telling(work, threading.Event()) for i in batch] == list(range(50))


def test_what_the_work_raises_comes_out_after_what_it_told():
    def work(tell):
        tell(1)
        raise ValueError("no")

    running = telling(work, threading.Event())
    assert next(running) == [1]
    with pytest.raises(ValueError, match="no"):
        next(running)


def endless(tell, ended):
    try:
        while True:
            tell(0)
            time.sleep(0.01)
    finally:
        ended.set()


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stopping_and_closing_end_the_work(how):
    stop, ended = threading.Event(), threading.Event()
    running = telling(lambda tell: endless(tell, ended), stop)
    next(running)
    if how == "close":
        running.close()
    else:
        stop.set()
        with pytest.raises(Interrupted):
            list(running)
    assert ended.wait(5)


def test_a_session_interrupts_its_own_work_only():
    stops = Stops()
    with stops.of("one") as one, stops.of("two") as two:
        assert stops.interrupt("one") and one.is_set() and not two.is_set()
    assert two.is_set() and not stops.interrupt("two") and not stops.interrupt(None)


def test_waiting_for_a_turn_can_be_given_up():
    turns, asked = Turns(), []

    def impatient():
        asked.append(1)
        raise Interrupted("enough")

    with turns.taken():
        with pytest.raises(Interrupted), turns.taken(impatient):
            raise AssertionError("it is not our turn")
        assert turns.busy
    with turns.taken(impatient):
        pass
    assert asked == [1] and not turns.busy


def test_turns_come_in_the_order_of_asking_and_long_work_lets_others_go_first():
    turns, order, asked = Turns(), [], threading.Event()

    def two_parts(name):
        with turns.taken(asked.set) as others_first:
            order.append(f"{name} 1")
            others_first()
            order.append(f"{name} 2")

    with turns.taken():
        threads = []
        for name in ("ann", "bob"):
            threads.append(threading.Thread(target=two_parts, args=(name,)))
            threads[-1].start()
            assert asked.wait(5)
            asked.clear()
            time.sleep(0.3)  # whoever asked before has told so again by now
            asked.clear()
    for thread in threads:
        thread.join(10)
    assert order == ["ann 1", "bob 1", "ann 2", "bob 2"] and not turns.busy
