"""How far figures could be off by the luck of which groups were asked: bootstrap over whole groups.

Rows of a group (a patient, a video, an image) resemble each other, so groups are drawn, not rows. What is drawn
follows from the number of groups alone, so that a report is the same whenever it is made.

Source: Efron and Tibshirani 1993, chapters 8 and 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from segue.evals.base import Reduce, Row

LEVEL = 0.95


_VISITS = 2_000_000  # rows that are looked at in all, so that large benchmarks take seconds too
_FEWEST, _MOST = 200, 2000


@runtime_checkable
class Resampling(Protocol):
    """A reduction that knows a faster way to the figures of resamples than to reduce each, as `Ratios` does."""

    def resampled(
        self, groups: Sequence[Sequence[Row]], drawn: Int[np.ndarray, "b g"], names: Sequence[str]
    ) -> Float[np.ndarray, "b k"]:
        """The named figures of each resample of groups; NaN where a resample has none of that name."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a figure lies with a confidence of 95%; `resamples` says in how many draws it could be computed."""

    low: float
    high: float
    resamples: int


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Between which shares the true one lies with a confidence of 95%, after so many successes; (0, 1) without trials.

    Source: Wilson 1927.
    """
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    centre = (successes + z * z / 2) / (trials + z * z)
    half = z / (trials + z * z) * math.sqrt(successes * (trials - successes) / trials + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def draws(groups: int, rows: int) -> Int[np.ndarray, "b g"]:
    """Numbers of groups, drawn with replacement, a line for each resample; fewer resamples of more rows."""
    resamples = int(np.clip(_VISITS // max(rows, 1), _FEWEST, _MOST))
    return np.random.default_rng([groups, 17]).integers(groups, size=(resamples, groups))


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their group, sorted by it."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return dict(sorted(groups.items()))


def resampled(groups: Sequence[Sequence[Row]], drawn: Int[np.ndarray, " g"]) -> list[Row]:
    """The rows of drawn groups; a group that is drawn again has another name, so that it counts as another."""
    times: dict[int, int] = {}
    found: list[Row] = []
    for number in drawn.tolist():
        again = times[number] = times.get(number, -1) + 1
        found += [{**row, "group": f"{row['group']}#{again}"} for row in groups[number]] if again else groups[number]
    return found


def intervals(rows: Sequence[Row], reduce: Reduce) -> dict[str, Interval]:
    """The interval of every figure, from resampled groups; none for a single group, which says nothing of others.

    Raises: DataError, for no rows.
    """
    figures = reduce(rows)
    groups = list(grouped(rows).values())
    if len(groups) < 2:
        return {}
    table = figures_of_draws(groups, draws(len(groups), len(rows)), reduce, list(figures))
    return {name: one for name, values in zip(figures, table.T, strict=True) if (one := _interval(values)) is not None}


def figures_of_draws(
    groups: Sequence[Sequence[Row]], drawn: Int[np.ndarray, "b g"], reduce: Reduce, names: Sequence[str]
) -> Float[np.ndarray, "b k"]:
    """The named figures of each resample; NaN where a resample has none of that name."""
    if isinstance(reduce, Resampling):
        return reduce.resampled(groups, drawn, names)
    found = (reduce(resampled(groups, chosen)) for chosen in drawn)
    return np.array([[figures.get(name, np.nan) for name in names] for figures in found], np.float64)


def _interval(values: Float[np.ndarray, " b"]) -> Interval | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), len(known))
