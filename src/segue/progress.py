"""How work goes on, as told to whoever watches: the command line, a parent process, a test; and bytes in words."""

from __future__ import annotations

import re
from typing import Protocol, runtime_checkable

from segue.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


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


def size(nbytes: int | float) -> str:
    """Bytes for people: 7.53 MB, 51.6 GB."""
    number = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.1f} GB" if number < 999.95 else f"{number / 1000:.1f} TB"


def parse_size(text: str) -> int:
    """Bytes in words: 200GB, 1.5TiB, 1000.

    Raises: ConfigError.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?|)b?\s*", text.lower())
    if not found:
        raise ConfigError(f"{text!r} is no size; expected such as 200GB, 1.5TiB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2]])
