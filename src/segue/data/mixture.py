"""Datasets mixed: which row is drawn when, what became of it, and the proof that none is left out.

What stands at a position of an epoch is a function of seed, epoch and position alone. So every worker of every machine
knows the same order, a run that was stopped goes on at its position, and how often each dataset is drawn up to any
point can be counted before the first step.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from segue.data.base import Dataset, order_rng, rng_for
from segue.errors import ConfigError, DataError, LimitError, MediaError, SegueError
from segue.files import append
from segue.types import Sample

log = logging.getLogger(__name__)

CEILING = 0.001
"""Share of a dataset's rows that may be skipped as bad, if nothing else is said."""


@dataclass(frozen=True, slots=True)
class MixturePart:
    """A dataset in a mixture. `weight` is how often an epoch draws each of its rows, on average.

    At 2 every row comes twice, at 2.5 twice or three times, at 0.5 every second row by chance, others in each epoch.
    """

    name: str
    dataset: Dataset
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PartTally:
    """A dataset's share of a run, up to some point of it.

    `asked` is how many samples an epoch asks for, `drawn` how many were drawn so far, of `seen` different rows; bad
    ones count as drawn. `skipped` counts different bad rows, `reasons` the kinds of errors they had and how often.
    """

    name: str
    rows: int
    weight: float
    asked: int
    drawn: int
    seen: int
    skipped: int
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Skip:
    """A line of `skipped.jsonl`: the row, where it was met first, and what was wrong with it."""

    part: str
    row: int
    epoch: int
    position: int
    kind: str
    error: str


class Mixture:
    """Datasets drawn in one order, each row of a dataset as often as its weight says.

    `len` is the number of positions of an epoch, the same for all.

    `on_bad_sample` says what becomes of a row that cannot be used. "raise" ends the run with its error. "skip" leaves
    the position empty and writes the row to the file `skipped`; nothing is put in its place. Of each dataset at most
    `ceiling` of the rows may be skipped, rounded down but at least one, and never all: one more ends the run. The
    file is the common memory of all workers and of resumed runs, so a row counts once, however often it is met.

    Raises: ConfigError, for no parts, two of one name, a weight that draws nothing, or "skip" without a file.
    """

    def __init__(
        self,
        parts: Sequence[MixturePart],
        seed: int,
        *,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        ceiling: float = CEILING,
        skipped: Path | None = None,
    ):
        if on_bad_sample == "skip" and (skipped is None or not 0 <= ceiling < 1):
            raise ConfigError(f"skipping needs a file to write to ({skipped}) and a ceiling in [0, 1) ({ceiling})")
        self.parts = tuple(parts)
        self._seed = seed
        self._ceiling = ceiling
        self._skipped = skipped if on_bad_sample == "skip" else None
        self._asked = _asked(self.parts)
        self._order: tuple[int, Int[np.ndarray, "n 2"]] | None = None

    def __len__(self) -> int:
        return sum(self._asked)

    def place(self, epoch: int, position: int) -> tuple[MixturePart, int]:
        """The part and the row that are drawn at a position of an epoch, both counted from 0."""
        if not 0 <= position < len(self):
            raise IndexError(f"an epoch has positions 0 to {len(self) - 1}, not {position}")
        part, row = self._order_of(epoch)[position]
        return self.parts[part], int(row)

    def get(self, epoch: int, position: int) -> Sample | None:
        """The sample at a position of an epoch, or None if its row is bad and skipped.

        Raises: DataError, MediaError or LimitError, for a bad row that may not be skipped.
        """
        part, row = self.place(epoch, position)
        try:
            return part.dataset.get(row, rng_for(self._seed, epoch, position))
        except (DataError, MediaError, LimitError) as error:
            self.refuse(epoch, position, error)
            return None

    def refuse(self, epoch: int, position: int, error: SegueError) -> None:
        """Keep to what `on_bad_sample` says for a sample that turned out bad, also later than in `get`.

        Raises: the error itself, if bad samples are not skipped; DataError, if this one passes the ceiling.
        """
        if self._skipped is None:
            raise error
        part, row = self.place(epoch, position)
        known = {skip.row for skip in self._skips() if skip.part == part.name}
        if row in known:
            return
        rows = len(part.dataset)
        allowed = min(max(1, int(rows * self._ceiling)), rows - 1)
        if len(known) >= allowed:
            raise DataError(
                f"{part.name} has more bad rows than the {allowed} of {rows} that may be skipped; the last: {error}. "
                f"The others are in {self._skipped}. Check the data with `segue doctor`, or raise the ceiling"
            ) from error
        log.warning("a row of %s cannot be used and is skipped; %s says why", part.name, self._skipped)
        _append(self._skipped, _Skip(part.name, row, epoch, position, type(error).__name__, str(error)))

    def tallies(self, epoch: int, position: int = 0) -> tuple[PartTally, ...]:
        """What has been drawn when epochs 0 to `epoch` - 1 are over and `position` positions of `epoch`.

        A point that lies ahead tells what will be drawn, except for `skipped`, which is what is known now.
        """
        drawn = np.zeros(len(self.parts), np.int64)
        seen = [np.zeros(len(part.dataset), bool) for part in self.parts]
        for number in range(epoch + 1):
            places = self._order_of(number)[: position if number == epoch else None]
            drawn += np.bincount(places[:, 0], minlength=len(self.parts))
            for part, rows in enumerate(seen):
                rows[places[places[:, 0] == part, 1]] = True
        skips = {(skip.part, skip.row): skip for skip in self._skips()}.values()
        return tuple(
            self._tally(
                number, int(drawn[number]), int(seen[number].sum()), [skip for skip in skips if skip.part == part.name]
            )
            for number, part in enumerate(self.parts)
        )

    def _tally(self, number: int, drawn: int, seen: int, skips: Sequence[_Skip]) -> PartTally:
        part = self.parts[number]
        reasons = tuple(Counter(skip.kind for skip in skips).most_common())
        return PartTally(
            part.name, len(part.dataset), part.weight, self._asked[number], drawn, seen, len(skips), reasons
        )

    def _order_of(self, epoch: int) -> Int[np.ndarray, "n 2"]:
        """Part and row of every position of an epoch."""
        if self._order is None or self._order[0] != epoch:
            rng = order_rng(self._seed, epoch)
            chosen = [_rows(rng, len(part.dataset), asked) for part, asked in zip(self.parts, self._asked, strict=True)]
            places = np.stack([np.repeat(np.arange(len(chosen)), self._asked), np.concatenate(chosen)], axis=1)
            # an order shorter than the parts together would leave the last ones out, unseen
            assert len(places) == len(self)
            self._order = epoch, rng.permutation(places)
        return self._order[1]

    def _skips(self) -> list[_Skip]:
        if self._skipped is None or not self._skipped.exists():
            return []
        lines = self._skipped.read_text(encoding="utf-8").split("\n")
        try:
            return [_Skip(**json.loads(line)) for line in lines if line]
        except (ValueError, TypeError) as error:
            raise DataError(f"{self._skipped} has a damaged line: {error}; remove that line") from error


def table(tallies: Sequence[PartTally]) -> str:
    """Tallies as lines of text, one for each dataset, for a log."""
    header = ("dataset", "rows", "weight", "asked", "drawn", "rows seen", "skipped")
    lines: list[tuple[str, ...]] = [header]
    for tally in tallies:
        why = ", ".join(f"{count} {reason}" for reason, count in tally.reasons)
        skipped = f"{tally.skipped} ({why})" if why else "0"
        numbers = (tally.rows, f"{tally.weight:g}", tally.asked, tally.drawn, f"{tally.seen / tally.rows:.0%}")
        lines.append((tally.name, *map(str, numbers), skipped))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 0 < place < 6 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _asked(parts: Sequence[MixturePart]) -> list[int]:
    """How many samples an epoch asks of each part."""
    names = [part.name for part in parts]
    if not parts or len(set(names)) < len(names):
        raise ConfigError(f"a mixture has the datasets {names}; expected one or more, each name once")
    asked = [int(len(part.dataset) * part.weight) if math.isfinite(part.weight) else 0 for part in parts]
    for part, count in zip(parts, asked, strict=True):
        if count < 1:
            raise ConfigError(
                f"{part.name} has {len(part.dataset)} rows and weight {part.weight}, so it would never be drawn; give "
                "it more weight or leave it out"
            )
    return asked


def _rows(rng: np.random.Generator, rows: int, asked: int) -> Int[np.ndarray, " n"]:
    """`asked` of a dataset's rows: every row equally often, but for a last round that takes some of them by chance."""
    rounds = np.tile(np.arange(rows), asked // rows)
    return np.concatenate([rounds, rng.permutation(rows)[: asked % rows]])


def _append(path: Path, skip: _Skip) -> None:
    """Add a line, whole: several processes write to the file."""
    line = json.dumps(asdict(skip), ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, line.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; free space or choose another run folder") from error
