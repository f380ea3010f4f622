"""Work that is done ahead of whoever asks for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
