"""Whether what a benchmark needs lies under a data root, and if not, what is missing and which name there is nearest.

The field `files` of each record is the one source: a path or pattern below the data root a line. In a pattern `*`, `?`
and `[...]` stand for parts of one name, `**` for any folders or none, and ` | ` stands between ways to say the same, of
which one is enough. A file must not be empty, nor must a folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import translate
from itertools import islice
from pathlib import Path

import numpy as np

from segue.datasets import DATASETS
from segue.errors import DataError
from segue.evals.base import Benchmark

_ALIKE = 0.8
_MOST_NAMES = 2_000
_MOST_TRIED = 50


@dataclass(frozen=True, slots=True)
class MissingFile:
    """A path or pattern that is not satisfied. `found` is what is there in its stead, as a path below the data root: a
    place that is empty, or one whose names are nearly those expected; nothing where there is none.
    """

    expected: str
    found: str = ""
    is_empty: bool = False

    @property
    def text(self) -> str:
        """The whole of it on one line."""
        expected = self.expected.replace(" | ", " or ")
        if self.is_empty:
            return f"{self.found} is empty; copy or unpack it again"
        nearest = f"; the nearest name is {self.found}: rename or link it" if self.found else ""
        return f"there is no {expected}{nearest}"


@dataclass(frozen=True, slots=True)
class LayoutStatus:
    """How the data of some benchmarks, which need the same files, stand: ready where there are no findings.

    `is_certain` says that a file lies there that only these need, or all of them.
    """

    names: tuple[str, ...]
    findings: tuple[MissingFile, ...]
    is_certain: bool = True

    @property
    def is_ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class LayoutSurvey:
    """What a folder holds: the benchmarks of which something is there, and the names of all others."""

    statuses: tuple[LayoutStatus, ...]
    absent: tuple[str, ...]

    @property
    def is_certain(self) -> bool:
        """Whether the folder is surely made for benchmarks."""
        return any(status.is_certain for status in self.statuses)


def missing(benchmark: Benchmark, root: Path, known: Collection[str] = ()) -> list[MissingFile]:
    """What keeps a benchmark from being run on a data root, in the order of its files; nothing if it is ready.

    `known` are names that mean something of their own in other benchmarks, so that they are not misspelt here.
    """
    found = (_look(pattern, root, known) for pattern in benchmark.files)
    return [finding for finding in found if finding is not None]


def survey(root: Path, benchmarks: Iterable[Benchmark]) -> LayoutSurvey:
    """Which benchmarks a data root holds something of, and what those lack. Records that need no files are left out.

    What several layouts need is a sign of none of them.
    """
    layouts: dict[tuple[str, ...], list[Benchmark]] = {}
    for benchmark in benchmarks:
        if benchmark.files:
            layouts.setdefault(benchmark.files, []).append(benchmark)
    known = known_names(benchmark for group in layouts.values() for benchmark in group)
    uses = Counter(pattern for files in layouts for pattern in set(files))
    statuses: list[LayoutStatus] = []
    absent: list[str] = []
    for files, group in layouts.items():
        names = tuple(benchmark.name for benchmark in group)
        findings = missing(group[0], root, known)
        lacking = {finding.expected: finding for finding in findings}
        own = [pattern for pattern in files if uses[pattern] == 1] or list(files)
        kept = [pattern for pattern in own if pattern not in lacking]
        if kept or any(lacking[pattern].found for pattern in own):
            statuses.append(LayoutStatus(names, tuple(findings), not findings or any(map(_is_one_file, kept))))
        else:
            absent += names
    return LayoutSurvey(tuple(statuses), tuple(absent))


def known_names(benchmarks: Iterable[Benchmark]) -> frozenset[str]:
    """All names of files and folders that mean something in these benchmarks; see `missing`."""
    ways = [way for benchmark in benchmarks for pattern in benchmark.files for way in _ways(pattern)]
    return frozenset(part for way in ways for part in way.split("/") if not _is_pattern(part))


def rows(benchmark: Benchmark, root: Path) -> int:
    """The number of rows of a benchmark whose files are there, of which the first has been opened.

    Raises: SegueError, if the files cannot be read as what they should be.
    """
    dataset = DATASETS[benchmark.dataset](root, benchmark.split, **benchmark.options)
    if not len(dataset):
        raise DataError(f"{benchmark.name} has no rows; its annotations name nothing of the split {benchmark.split}")
    dataset.get(0, np.random.default_rng(0))
    return len(dataset)


def _look(pattern: str, root: Path, known: Collection[str]) -> MissingFile | None:
    """What is wrong about a pattern; nothing, if one of its ways is satisfied."""
    findings = []
    for way in _ways(pattern):
        places = list(islice(root.glob(way), _MOST_TRIED))
        if places and not all(map(_is_empty, places)):
            return None
        found = places[0] if places else _nearest(root, way.split("/"), known)
        below = "" if found is None else found.relative_to(root).as_posix()
        findings.append(MissingFile(pattern, below, is_empty=bool(places)))
    return max(findings, key=lambda finding: (finding.is_empty, bool(finding.found)))


def _nearest(folder: Path, parts: Sequence[str], known: Collection[str]) -> Path | None:
    """The place whose names are nearly those of a path; `None` if one of them is like nothing there."""
    for part in parts:
        if part == "**":
            return None
        if _is_pattern(part):
            # of a pattern only its case may be another
            fitting = [entry for entry in _names(folder) if re.match(translate(part), entry, re.IGNORECASE)]
        else:
            fitting = [part] if (folder / part).exists() else close_names(part, _names(folder), known)
        if not fitting:
            return None
        folder = folder / fitting[0]
    return folder


def close_names(wanted: str, names: Iterable[str], known: Collection[str] = ()) -> list[str]:
    """The names that somebody may have written for another, nearest first.

    Case and marks between words do not count. Numbers and endings must be the same, for `train2017` is not a slip for
    `train2014`; nor is a name that is `known` a slip for another.
    """
    others = {_plain(name) for name in known} - {_plain(wanted)}
    candidates = [
        name
        for name in names
        if name not in known
        and _plain(name) not in others
        and Path(name).suffix.casefold() == Path(wanted).suffix.casefold()
        and re.findall(r"\d+", name) == re.findall(r"\d+", wanted)
    ]
    near = get_close_matches(_plain(wanted), {_plain(name) for name in candidates}, cutoff=_ALIKE)
    return [name for plain in near for name in candidates if _plain(name) == plain]


def _names(folder: Path) -> list[str]:
    """What lies in a folder, in order, hidden files left out; of very many only a part."""
    try:
        return sorted(entry.name for entry in islice(folder.iterdir(), _MOST_NAMES) if not entry.name.startswith("."))
    except OSError:
        return []


def _is_empty(place: Path) -> bool:
    return next(place.iterdir(), None) is None if place.is_dir() else place.stat().st_size == 0


def _ways(pattern: str) -> list[str]:
    return [way.strip().strip("/") for way in pattern.split(" | ")]


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _is_one_file(pattern: str) -> bool:
    last = _ways(pattern)[0].rsplit("/", 1)[-1]
    return "." in last and not _is_pattern(last)


def _plain(name: str) -> str:
    return re.sub("[-_ ]", "", name).casefold()
