"""Tables that map a name to code imported on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from segue.errors import ConfigError


class Table(Mapping[str, Any]):
    """Names to objects, each given as "module:attribute" and imported only when it is asked for.

    Listing a table imports nothing. `kind` is the word for one entry in error texts.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]):
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        """The object of that name.

        Raises: ConfigError, naming the nearest known name, if there is none.
        """
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"unknown {self.kind} {name!r}{hint} Known: {', '.join(self._entries)}")
        module, attribute = self._entries[name].split(":")
        return getattr(import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
