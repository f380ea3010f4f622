"""Frames are made ahead in a thread, and written behind in another, a few at a time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from segue.media import ahead, read_ahead
from segue.media.ahead import do_behind


@pytest.fixture
def made():
    """Numbers from 0 up to a limit, and what is known of their making."""

    class Made:
        def __init__(self):
            self.numbers, self.threads = [], set()
            self.last = threading.Event()

        def upto(self, limit, *, broken=False):
            for number in range(limit):
                self.numbers.append(number)
                self.threads.add(threading.get_ident())
                yield number
            self.last.set()
            if broken:
                raise ValueError("the fifth frame is damaged")

    return Made()


def test_items_come_in_order_and_are_made_in_another_thread(made):
    assert list(read_ahead(made.upto(7))) == list(range(7))
    assert len(made.threads) == 1 and threading.get_ident() not in made.threads


def test_the_next_items_are_made_while_one_is_used(made):
    items = read_ahead(made.upto(2), count=2)
    assert next(items) == 0
    assert made.last.wait(10)


def test_no_more_than_asked_for_wait_however_many_there_are(made):
    items = read_ahead(made.upto(1000), count=3)
    for used in range(5):
        next(items)
        assert len(made.numbers) <= used + 1 + 3


def test_an_error_comes_where_its_item_would(made):
    items = read_ahead(made.upto(4, broken=True))
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="fifth frame is damaged"):
        next(items)


def test_nothing_more_is_made_once_somebody_stops(made):
    threads = threading.active_count()
    items = read_ahead(made.upto(1000), count=2)
    next(items)
    items.close()
    assert len(made.numbers) <= 4 and threading.active_count() == threads


class TestBehind:
    def test_calls_are_done_in_their_order_in_one_other_thread(self):
        done, threads = [], set()

        def do(number):
            done.append(number)
            threads.add(threading.get_ident())

        with do_behind(do) as ask:
            for number in range(20):
                ask(number)
        assert done == list(range(20))
        assert len(threads) == 1 and threading.get_ident() not in threads

    def test_the_caller_goes_on_until_so_many_wait(self):
        gate, asked = threading.Event(), []

        def ask_all():
            with do_behind(lambda _: gate.wait(), count=2) as ask:
                for number in range(5):
                    asked.append(number)
                    ask(number)

        caller = threading.Thread(target=ask_all)
        caller.start()
        while len(asked) < 3:
            time.sleep(0.01)
        caller.join(0.1)
        assert caller.is_alive() and asked == [0, 1, 2]
        gate.set()
        caller.join()
        assert asked == list(range(5))

    def test_an_error_comes_at_the_latest_at_the_end(self):
        def do(number):
            if number == 1:
                raise OSError("the disk is full")

        with pytest.raises(OSError, match="the disk is full"), do_behind(do, count=9) as ask:
            for number in range(4):
                ask(number)

    def test_what_waits_when_the_caller_fails_is_not_done(self, monkeypatch):
        gate, done = threading.Event(), []

        class Opening(ThreadPoolExecutor):
            def shutdown(self, wait=True, *, cancel_futures=False):
                super().shutdown(wait=False, cancel_futures=cancel_futures)
                gate.set()
                super().shutdown()

        monkeypatch.setattr(ahead, "ThreadPoolExecutor", Opening)

        def do(number):
            gate.wait()
            done.append(number)

        def fail():
            with do_behind(do, count=9) as ask:
                for number in range(5):
                    ask(number)
                raise ValueError("the model broke")

        with pytest.raises(ValueError, match="the model broke"):
            fail()
        assert done in ([], [0])
