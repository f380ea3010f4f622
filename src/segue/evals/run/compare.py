"""Two runs over the same rows: is one better than the other, or was it luck?

Groups are drawn, the same for both, so that what is hard for both does not blur the difference.

Source: paired bootstrap, Efron and Tibshirani 1993, chapter 16; Koehn 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import ConfigError, DataError
from segue.evals.base import Benchmark, Reduce, Row
from segue.evals.metrics.confidence import LEVEL, draws, figures_of_draws, grouped
from segue.evals.run import report

SIGNIFICANT = 1 - LEVEL


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of two runs, and by how much the second is above the first.

    [`low`, `high`] holds the difference with a confidence of 95%. `p` is how often, under luck alone, a difference at
    least as large would come about, in either direction; that all of n groups differ alike is luck in one case of
    2^(n-1), so that it is no less.
    """

    figure: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Whether luck is an unlikely reason."""
        return self.p < SIGNIFICANT


def compare(first: Path, second: Path, benchmark: Benchmark) -> list[Difference]:
    """The differences between two runs' figures, the headline's first.

    Raises: ConfigError, for runs of different benchmarks, protocols or rows, or of one model asked in one way;
        DataError, for a run without a report, or with failures that the other has not.
    """
    reports = [report.read(folder) for folder in (first, second)]
    check_comparable(reports[0], reports[1])
    folders = zip((first, second), reports, strict=True)
    rows = [report.RunFolder(out=folder, benchmark=benchmark, total=one["total"]).scored() for folder, one in folders]
    found = differences(rows[0], rows[1], benchmark.reduce)
    return sorted(found, key=lambda one: one.figure != benchmark.headline)


def check_comparable(first: report.RunReport, second: report.RunReport) -> None:
    """Refuse to compare what was not measured alike.

    Raises: ConfigError, saying in what two reports differ, or that they are of one model asked in one way.
    """
    for name, what in (
        ("benchmark", "benchmarks"),
        ("protocol", "protocols"),
        ("options", "questions"),
        ("row_set", "rows"),
    ):
        if first[name] != second[name]:
            raise ConfigError(
                f"the runs have different {what} ({first[name]} and {second[name]}), so their figures cannot be "
                "compared; evaluate both on the same rows in the same way"
            )
    alike = ("settings", "asked")
    hashes = [one["model"].get("model_hash") for one in (first, second)]
    is_one_model = hashes[0] is not None and hashes[0] == hashes[1]
    is_asked_alike = all(first[name] == second[name] for name in alike)
    is_run_alike = all(first["model"].get(name) == second["model"].get(name) for name in ("dtype", "features"))
    if is_one_model and is_asked_alike and is_run_alike:
        raise ConfigError(
            f"both runs are of the same weights ({hashes[0]}), asked in the same way; is one of the models not the one "
            "that you meant?"
        )


def differences(first: Sequence[Row], second: Sequence[Row], reduce: Reduce) -> list[Difference]:
    """What two runs over the same rows differ by, figure for figure; figures that either lacks are left out.

    Raises: DataError, for other rows, or fewer than two groups.
    """
    groups = [grouped(rows) for rows in (first, second)]
    ids = [sorted(row["id"] for row in rows) for rows in (first, second)]
    if ids[0] != ids[1] or list(groups[0]) != list(groups[1]):
        raise DataError("the two runs do not have the same rows in the same groups; evaluate both on the same data")
    if len(groups[0]) < 2:
        raise DataError("all rows are of one group, which says nothing about others; evaluate on more groups")
    whole = [reduce(rows) for rows in (first, second)]
    names = [name for name in whole[0] if name in whole[1]]
    parts = [list(by_group.values()) for by_group in groups]
    drawn = draws(len(parts[0]), len(first))
    first_drawn, second_drawn = (figures_of_draws(part, drawn, reduce, names) for part in parts)
    table = second_drawn - first_drawn
    return [
        _difference(name, whole[0][name], whole[1][name], column, len(groups[0]))
        for name, column in zip(names, table.T, strict=True)
    ]


def as_json(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences as JSON can hold them."""
    return [{**asdict(one), "significant": one.is_significant} for one in found]


def _difference(name: str, first: float, second: float, drawn: np.ndarray, groups: int) -> Difference:
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return Difference(name, first, second, second - first, second - first, second - first, 1.0)
    low, high = np.quantile(known, [SIGNIFICANT / 2, 1 - SIGNIFICANT / 2])
    # one more draw than there were, the one that luck could have given, so that p is never 0
    beyond = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0)) + 1
    p = min(1.0, max(2 * float(beyond) / (len(known) + 1), 2.0 ** (1 - groups)))
    return Difference(name, first, second, second - first, float(low), float(high), p)
