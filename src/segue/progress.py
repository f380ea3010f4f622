"""How work goes on, as told to whoever watches: the command line, a parent process, a test."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Is told how far some work is."""

    def start(self, total: int, done: int = 0) -> None:
        """So many steps are to be done, so many of which are done already."""
        ...

    def step(self, failure: str | None = None) -> None:
        """One more step is done, or has failed for this reason."""
        ...


class NoProgress:
    """Where nobody watches."""

    def start(self, total: int, done: int = 0) -> None:
        """Nothing."""

    def step(self, failure: str | None = None) -> None:
        """Nothing."""


UNWATCHED = NoProgress()
