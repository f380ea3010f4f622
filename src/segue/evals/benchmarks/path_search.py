"""Where in a tree of folders a path or pattern is, nearly is, or has gone.

In a pattern `*`, `?` and `[...]` stand for parts of one name, and `**` for any folders or none. Trees of data are
large, so looks are bounded: what holds thousands of pictures is not searched for misspelt files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path

MOST_TRIED = 50
"""How many of the names that fit a pattern are followed."""

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_ALIKE = 0.8
_MOST_NAMES = 2_000
_MOST_FOLDERS = 2_000
_DEPTH = 5
_UNMARKED = str.maketrans("", "", "-_ ")


class Tree:
    """A folder and what is below it, listed once. `is_searched` False: only what is asked for by its path is found."""

    def __init__(self, root: Path, *, is_searched: bool = True):
        self.root = root
        self.is_searched = is_searched
        self._names: dict[Path, tuple[str, ...]] = {}
        self._above: dict[Path, Tree] = {}

    def above(self, root: Path) -> Tree:
        """The tree of a folder above, which is not searched."""
        return self._above.setdefault(root, Tree(root, is_searched=False))

    def names(self, folder: Path) -> tuple[str, ...]:
        """What lies in a folder, in order, hidden files left out; nothing if it is none or cannot be listed."""
        if folder not in self._names:
            try:
                listed = [entry.name for entry in folder.iterdir()]
            except OSError:
                listed = []
            self._names[folder] = tuple(sorted(name for name in listed if not name.startswith(".")))
        return self._names[folder]

    def below(self, place: Path) -> str:
        """The path of a place below the root; nothing for the root itself."""
        path = place.relative_to(self.root).as_posix()
        return "" if path == "." else path

    def is_empty(self, place: Path) -> bool:
        """Whether a folder holds nothing, or a file has no bytes."""
        return not self.names(place) if place.is_dir() else place.stat().st_size == 0

    def matches(self, parts: Sequence[str], folder: Path | None = None) -> Iterator[Path]:
        """The places that a path or pattern names, below the root or a folder in it; lazily."""
        folder = folder or self.root
        if not parts:
            yield folder
        elif parts[0] == "**":
            for below in self._folders(folder, _DEPTH):
                yield from self.matches(parts[1:], below)
        elif is_pattern(parts[0]):
            fitting = (name for name in self.names(folder) if fnmatchcase(name, parts[0]))
            for name in islice(fitting, MOST_TRIED):
                yield from self.matches(parts[1:], folder / name)
        elif (folder / parts[0]).exists():
            yield from self.matches(parts[1:], folder / parts[0])

    def near(self, parts: Sequence[str], known: Collection[str], folder: Path | None = None) -> Iterator[Path]:
        """The places whose names are nearly those of a path or pattern; names that are `known` mean something else."""
        folder = folder or self.root
        if not parts:
            yield folder
            return
        if parts[0] == "**":
            nexts = list(self._folders(folder, _DEPTH))
        elif not is_pattern(parts[0]) and (folder / parts[0]).exists():
            nexts = [folder / parts[0]]
        else:
            nexts = [folder / name for name in _near(parts[0], self.names(folder)[:_MOST_NAMES], known)]
        for place in nexts:
            yield from self.near(parts[1:], known, place)

    def archive(self, folder: Path, rest: Sequence[str]) -> Path | None:
        """An archive in a folder that by its name holds what is missing there."""
        wanted = {_plain(name) for name in rest if not is_pattern(name)} or {_plain(folder.name)}
        for name in self.names(folder)[:_MOST_NAMES]:
            ending = next((ending for ending in _ARCHIVES if name.casefold().endswith(ending)), None)
            if ending is not None and _plain(name[: -len(ending)]) in wanted:
                return folder / name
        return None

    def elsewhere(self, parts: Sequence[str], depth: int, known: Collection[str]) -> str:
        """Where else the end of a path is, of which `depth` names are there; nothing if it is nowhere.

        Two names of it count anywhere, the last alone within its own folder; not below one that means something else.
        """
        if any(map(is_pattern, parts)):
            parts = parts[: next(number for number, part in enumerate(parts) if is_pattern(part))]
        if depth >= len(parts):
            return ""
        others = set(map(_plain, known)) - set(map(_plain, parts))
        places = [path for path in self._places.get(parts[-1], ()) if not others & set(map(_plain, path.split("/")))]
        for length in range(len(parts) - 1, 1, -1):
            tail = "/" + "/".join(parts[-length:])
            if place := next((path for path in places if f"/{path}".endswith(tail)), ""):
                return place
        begin = "/".join(parts[:depth]) + "/"
        return next((path for path in places if depth and path.startswith(begin)), "")

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """Paths below the root by their last name, shallow ones first; of large trees only a part."""
        found: dict[str, list[str]] = {}
        level, seen = [self.root] if self.is_searched else [], 0
        for _ in range(_DEPTH):
            below: list[Path] = []
            for folder in level:
                begin = f"{self.below(folder)}/".lstrip("/")
                for name in self.names(folder)[:_MOST_NAMES]:
                    found.setdefault(name, []).append(begin + name)
                    if "." not in name and seen + len(below) < _MOST_FOLDERS and (folder / name).is_dir():
                        below.append(folder / name)
            seen += len(below)
            level = below
        return found

    def _folders(self, folder: Path, depth: int) -> Iterator[Path]:
        """A folder and those in it, a bounded number of each."""
        yield folder
        if depth:
            inside = (folder / name for name in self.names(folder) if "." not in name)
            for place in islice((place for place in inside if place.is_dir()), MOST_TRIED):
                yield from self._folders(place, depth - 1)


def is_pattern(name: str) -> bool:
    """Whether a name stands for several."""
    return any(mark in name for mark in "*?[")


def close_names(wanted: str, names: Iterable[str], known: Collection[str] = ()) -> list[str]:
    """The names that somebody may have written for another, nearest first.

    Case and marks between words do not count. Numbers and endings must be the same, for `train2017` is not a slip for
    `train2014`; nor is a name that is `known`, however it is written, a slip for another.
    """
    ending, numbers = Path(wanted).suffix.casefold(), re.findall(r"\d+", wanted)
    others = set(map(_plain, known)) - {_plain(wanted)}
    scored = []
    for name in names:
        if Path(name).suffix.casefold() != ending or re.findall(r"\d+", name) != numbers:
            continue
        if name in known or _plain(name) in others:
            continue
        likeness = SequenceMatcher(None, _plain(wanted), _plain(name), autojunk=False).ratio()
        if likeness >= _ALIKE:
            scored.append((-likeness, name))
    return [name for _, name in sorted(scored)]


def _near(part: str, names: Sequence[str], known: Collection[str]) -> list[str]:
    """The names that one name of a path or pattern may mean: those that fit a pattern, else those nearly so."""
    if not is_pattern(part):
        return close_names(part, names, known)
    fitting = [name for name in names if fnmatchcase(name, part)]
    if not fitting:
        fitting = [name for name in names if fnmatchcase(name.casefold(), part.casefold())]
    if not fitting and part.endswith(".*") and not is_pattern(part[:-2]):
        stems = {Path(name).stem: name for name in names if Path(name).suffix}
        fitting = [stems[stem] for stem in close_names(part[:-2], stems, known)]
    return fitting[:MOST_TRIED]


def _plain(name: str) -> str:
    return name.translate(_UNMARKED).casefold()
