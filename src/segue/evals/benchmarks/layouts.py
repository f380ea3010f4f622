"""Whether what a benchmark needs lies under a data root, and if not, what is missing, misnamed or in another place.

The field `files` of each record is the one source: a path or pattern below the data root a line. In a pattern `*`, `?`
and `[...]` stand for parts of one name, `**` for any folders or none, and ` | ` stands between ways to say the same, of
which one is enough. A file must not be empty, nor must a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from segue.datasets import DATASETS
from segue.errors import DataError
from segue.evals.base import Benchmark
from segue.evals.benchmarks.path_search import MOST_TRIED, Tree, is_pattern

Kind = Literal["missing", "empty", "misnamed", "packed", "misplaced"]

_TOLD = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a benchmark is not ready: what was expected, and what is there in its stead, as paths below the data root.

    `found` is empty where nothing is there; `advice` says what to do about it.
    """

    kind: Kind
    expected: str
    found: str
    advice: str

    @property
    def text(self) -> str:
        """The whole of it on one line."""
        expected = self.expected.replace(" | ", " or ")
        said = {
            "missing": f"there is no {expected}",
            "empty": f"{self.found} is empty",
            "misnamed": f"found {self.found}, expected {expected}",
            "packed": f"found the archive {self.found}, expected {expected}",
            "misplaced": f"found {self.found}, expected {expected}",
        }
        return f"{said[self.kind]}; {self.advice}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the data of some benchmarks, which need the same files, stand: ready where there are no findings.

    `root` is the data root that was looked at; `is_above` says that it lies above the folder that was named, which is a
    part of it. `is_certain` says that a file lies there that only these need, or all of them; else these are what is
    meant by what looks like it.
    """

    names: tuple[str, ...]
    root: Path
    findings: tuple[Finding, ...]
    is_certain: bool = True
    is_above: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class Survey:
    """What a folder holds: the benchmarks of which something is there, and the names of all others."""

    standings: tuple[Standing, ...]
    absent: tuple[str, ...]

    @property
    def is_certain(self) -> bool:
        """Whether the folder is surely made for benchmarks."""
        return any(standing.is_certain for standing in self.standings)


def missing(benchmark: Benchmark, root: Path, known: Collection[str] = ()) -> list[Finding]:
    """What keeps a benchmark from being run on a data root, in the order of its files; nothing if it is ready.

    `known` are names that mean something of their own in other benchmarks, so that they are not misspelt here.
    """
    return _findings(benchmark.files, Tree(root), {*known, *_names(benchmark.files)})


def survey(root: Path, benchmarks: Iterable[Benchmark]) -> Survey:
    """Which benchmarks a folder holds data of, and what those lack.

    The folder is a data root, a part of one, or one dataset on its own, as downloaded. Records that need no files are
    left out.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for benchmark in benchmarks:
        if benchmark.files:
            groups.setdefault(benchmark.files, []).append(benchmark.name)
    words = _Words.of(groups)
    tree = Tree(root)
    found = {files: _stands(files, tuple(names), tree, words) for files, names in groups.items()}
    standings = [standing for standing in found.values() if standing is not None]
    told = {name for standing in standings for name in standing.names}
    absent = tuple(name for names in groups.values() for name in names if name not in told)
    return Survey(tuple(standings), absent)


def known_names(benchmarks: Iterable[Benchmark]) -> frozenset[str]:
    """All names of files and folders that mean something in these benchmarks; see `missing`."""
    return frozenset(name for benchmark in benchmarks for name in _names(benchmark.files))


def rows(benchmark: Benchmark, root: Path) -> int:
    """The number of rows of a benchmark whose files are there, of which the first has been opened.

    Raises: SegueError, if the files cannot be read as what they should be.
    """
    dataset = DATASETS[benchmark.dataset](root, benchmark.split, **benchmark.options)
    if not len(dataset):
        raise DataError(f"{benchmark.name} has no rows; its annotations name nothing of the split {benchmark.split}")
    dataset.get(0, np.random.default_rng(0))
    return len(dataset)


@dataclass(frozen=True, slots=True)
class _Words:
    """What a table of layouts says with its names: all `known` ones, the patterns that several layouts have, and the
    names of files that tell one layout from all others."""

    known: frozenset[str]
    shared: frozenset[str]
    telling: frozenset[str]

    @classmethod
    def of(cls, layouts: Collection[tuple[str, ...]]) -> _Words:
        uses = Counter(pattern for files in layouts for pattern in set(files))
        lasts = Counter(name for files in layouts for name in {_last(pattern) for pattern in files})
        return cls(
            frozenset(name for files in layouts for name in _names(files)),
            frozenset(pattern for pattern, count in uses.items() if count > 1),
            frozenset(name for name, count in lasts.items() if count == 1),
        )


def _stands(files: tuple[str, ...], names: tuple[str, ...], tree: Tree, words: _Words) -> Standing | None:
    """How these files stand under a folder that is a data root, a part of one, or their dataset; None without a sign
    of them."""
    here = _stands_below(files, names, tree, words)
    if here is not None and here[0]:
        return here[1]
    above = (tree.above(root) for root in _roots_above(files, tree.root))
    found = [one for one in (_stands_below(files, names, other, words) for other in above) if one is not None]
    kept, best = max(found, key=lambda one: one[0], default=(0, None))
    if best is not None and kept:
        return replace(best, is_above=True)
    return _as_downloaded(files, names, tree, words) or (here and here[1])


def _stands_below(
    files: tuple[str, ...], names: tuple[str, ...], tree: Tree, words: _Words
) -> tuple[int, Standing] | None:
    """How these files stand below a data root, and how many that only they need are as they should be."""
    own = [pattern for pattern in files if pattern not in words.shared] or list(files)
    findings = _findings(files, tree, words.known)
    lacking = {finding.expected: finding for finding in findings}
    kept = [pattern for pattern in own if pattern not in lacking]
    if not kept and not any(lacking[pattern].found for pattern in own):
        return None
    is_certain = any(map(_is_annotation, kept)) or not findings
    return len(kept), Standing(names, tree.root, tuple(findings), is_certain)


def _as_downloaded(files: tuple[str, ...], names: tuple[str, ...], tree: Tree, words: _Words) -> Standing | None:
    """How these files stand if the folder is what should lie deeper in a data root, under whatever name."""
    for prefix in _prefixes(files):
        inside = tuple(_without(pattern, prefix) for pattern in files if pattern.startswith(prefix))
        findings = _findings(inside, tree, words.known)
        lacking = {finding.expected for finding in findings}
        kept = [pattern for pattern in inside if pattern not in lacking and _is_annotation(pattern)]
        if len(kept) >= 2 or any(_last(pattern) in words.telling for pattern in kept):
            place = prefix.rstrip("/")
            advice = f"move or link this folder to {place} below a data root, and name that root"
            moved = Finding("misplaced", place, str(tree.root), advice)
            return Standing(
                names, tree.root, (moved, *(replace(one, expected=prefix + one.expected) for one in findings))
            )
    return None


def _findings(files: Sequence[str], tree: Tree, known: Collection[str]) -> list[Finding]:
    return [finding for pattern in files if (finding := _look(pattern, tree, known)) is not None]


def _look(pattern: str, tree: Tree, known: Collection[str]) -> Finding | None:
    """What is wrong about a pattern; of several ways to satisfy it, about the one that is nearest to it."""
    tried = []
    for way in _ways(pattern):
        finding, depth = _look_once(way, tree, known)
        if finding is None:
            return None
        tried.append((bool(finding.found), depth, finding))
    best = max(tried, key=lambda one: one[:2])[2]
    return replace(best, expected=pattern)


def _look_once(way: str, tree: Tree, known: Collection[str]) -> tuple[Finding | None, int]:
    """What is wrong about one path or pattern, and how many of its names are there."""
    parts = way.strip("/").split("/")
    places = list(islice(tree.matches(parts), MOST_TRIED))
    if places:
        if not all(map(tree.is_empty, places)):
            return None, len(parts)
        advice = "it was not copied or unpacked to its end; do so again"
        return Finding("empty", way, tree.below(places[0]), advice), len(parts)
    depth = max(count for count in range(len(parts)) if next(tree.matches(parts[:count]), None) is not None)
    folder = next(tree.matches(parts[:depth]))
    if (near := next(tree.near(parts, known), None)) is not None:
        advice = f"rename it, or link it: {_step(near.relative_to(tree.root).parts, parts)}"
        return Finding("misnamed", way, tree.below(near), advice), depth
    if (archive := tree.archive(folder, parts[depth:])) is not None:
        return Finding("packed", way, tree.below(archive), "unpack it there"), depth
    if elsewhere := tree.elsewhere(parts, depth, known):
        return Finding("misplaced", way, elsewhere, "move or link it"), depth
    there = tree.names(folder)
    holds = ", ".join(there[:_TOLD]) + (", ..." if len(there) > _TOLD else "")
    return Finding(
        "missing", way, "", f"{tree.below(folder) or 'the data root'} holds {holds or 'nothing'}. Put it there"
    ), depth


def _step(found: Sequence[str], parts: Sequence[str]) -> str:
    """The first name of a path that is not as it should be, and what it should be."""
    # what stands behind `**` is counted from the end
    front = parts.index("**") if "**" in parts else len(parts)
    behind = len(parts) - front - 1
    pairs = [*zip(found[:front], parts[:front], strict=True)]
    pairs += zip(found[len(found) - behind :], parts[front + 1 :], strict=True) if behind > 0 else []
    wrong, right = next((name, part) for name, part in pairs if not fnmatchcase(name, part))
    return f"{wrong} -> {right}"


def _roots_above(files: Iterable[str], folder: Path) -> list[Path]:
    """The folders above that would be the data root if this folder has the name that it has in the layout."""
    ways = [way.split("/") for pattern in files for way in _ways(pattern)]
    heads = {tuple(parts[:depth]) for parts in ways for depth in range(1, len(parts))}
    resolved = folder.resolve()
    depths = {len(head) for head in heads if resolved.parts[-len(head) :] == head}
    return [resolved.parents[depth - 1] for depth in sorted(depths)]


def _prefixes(files: Iterable[str]) -> list[str]:
    """The folders, each with a mark at its end, that single files of a layout lie in or below; deep ones first."""
    split = [_ways(pattern)[0].split("/")[:-1] for pattern in files if _is_annotation(pattern)]
    heads = {
        "/".join(parts[:depth]) + "/"
        for parts in split
        for depth in range(1, len(parts) + 1)
        if not any(map(is_pattern, parts[:depth]))
    }
    return sorted(heads, key=lambda head: (-head.count("/"), head))


def _without(pattern: str, prefix: str) -> str:
    return " | ".join(way.removeprefix(prefix) for way in _ways(pattern))


def _names(files: Iterable[str]) -> set[str]:
    """All names in some patterns that are no patterns themselves."""
    ways = [way for pattern in files for way in _ways(pattern)]
    return {part for way in ways for part in way.split("/") if part and not is_pattern(part)}


def _ways(pattern: str) -> list[str]:
    return [way.strip() for way in pattern.split(" | ")]


def _is_annotation(pattern: str) -> bool:
    """Whether a pattern names one file."""
    return "." in _last(pattern) and not is_pattern(_last(pattern))


def _last(pattern: str) -> str:
    """The last name of a pattern, by its first way."""
    return _ways(pattern)[0].strip("/").rsplit("/", 1)[-1]
