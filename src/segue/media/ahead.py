"""Work that is done beside whoever asks for it: ahead of them, or behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
AHEAD = 2
_END = object()


def read_ahead(items: Iterator[T], count: int = AHEAD) -> Generator[T, None, None]:
    """The same items, made in a thread while those before them are used; at most `count` wait to be asked for.

    An error comes where its item would. Whoever stops early waits for the item that is being made, and no more are.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="segue-read-ahead")

    def ask() -> Future[object]:
        # what the caller has set for its own context holds for what is done ahead
        return thread.submit(copy_context().run, lambda: next(items, _END))

    waiting = deque(ask() for _ in range(count))
    try:
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(ask())
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)


@contextmanager
def do_behind(do: Callable[[T], None], count: int = AHEAD) -> Generator[Callable[[T], None], None, None]:
    """The same function, whose calls are done one after another in a thread while the caller goes on.

    At most `count` of them wait to be done. An error comes at a later call or at the end of the block, when calls after
    the one that failed may have been done too; those that wait when the block ends by an error are not.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="segue-do-behind")
    waiting: deque[Future[None]] = deque()

    def ask(item: T) -> None:
        waiting.append(thread.submit(copy_context().run, do, item))
        while len(waiting) > count:
            waiting.popleft().result()

    try:
        yield ask
        while waiting:
            waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
