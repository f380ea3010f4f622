"""Figures that are each one sum over rows divided by another: means, shares, pooled overlaps.

Most figures are. Said this way, thousands of resamples are one product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from segue.errors import DataError
from segue.evals.base import Row

Parts = Mapping[str, tuple[float, float]]
"""What a row adds to the upper and to the lower sum of each figure; a figure that it has no part in is not named."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """A reduction, as `segue.evals.base.Reduce`: figures stand in the order of `names`, then of their first coming.

    A figure whose lower sum is 0 is left out. Sums are exact, so the order of rows does not matter.
    """

    parts: Callable[[Row], Parts]
    names: tuple[str, ...] = ()

    def __call__(self, rows: Sequence[Row]) -> dict[str, float]:
        """The figures of some rows.

        Raises: DataError, for no rows.
        """
        if not rows:
            raise DataError("there are no rows to make figures of; nothing was answered")
        above: dict[str, list[float]] = {name: [] for name in self.names}
        below: dict[str, list[float]] = {name: [] for name in self.names}
        for row in rows:
            for name, (upper, lower) in self.parts(row).items():
                above.setdefault(name, []).append(upper)
                below.setdefault(name, []).append(lower)
        totals = {name: math.fsum(values) for name, values in below.items()}
        return {name: math.fsum(above[name]) / total for name, total in totals.items() if total}

    def resampled(
        self, groups: Sequence[Sequence[Row]], drawn: Int[np.ndarray, "b g"], names: Sequence[str]
    ) -> Float[np.ndarray, "b k"]:
        """The named figures of each resample of groups; NaN where a lower sum is 0."""
        places = {name: place for place, name in enumerate(names)}
        sums = np.zeros((2, len(groups), len(names)))
        for number, rows in enumerate(groups):
            for row in rows:
                for name, pair in self.parts(row).items():
                    if name in places:
                        sums[:, number, places[name]] += pair
        times = np.stack([np.bincount(one, minlength=len(groups)) for one in drawn]).astype(np.float64)
        above, below = times @ sums[0], times @ sums[1]
        return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
