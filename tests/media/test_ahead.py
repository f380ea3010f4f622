"""Frames are made ahead in a thread, a few at a time."""

import threading

import pytest

from segue.media import read_ahead


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
