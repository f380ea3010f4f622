"""Rows to figures: what the reductions of all benchmarks share.

Sums are exact (`math.fsum`), so that the order of the rows cannot matter. A share is given in percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from segue.errors import DataError
from segue.evals.base import Row
from segue.evals.metrics.ratios import Parts, Ratios


def some(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, of which there must be one.

    Raises: DataError.
    """
    if not rows:
        raise DataError("there are no rows to make figures of; nothing was answered")
    return rows


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value."""
    listed = [float(value) for value in values]
    return math.fsum(listed) / len(listed)


def percent(rows: Sequence[Row], field: str = "correct") -> float:
    """The mean of a field of at least one row, each between 0 and 1, in percent."""
    return 100 * mean(row[field] for row in rows)


def grouped(rows: Sequence[Row], by: str) -> dict[str, list[Row]]:
    """Rows by the text of one of their fields, in the order of those texts; rows in which it is empty are left out."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.get(by) not in (None, ""):
            groups.setdefault(str(row[by]), []).append(row)
    return dict(sorted(groups.items()))


def shares(figure: str = "accuracy", *, by: Sequence[str] = ()) -> Ratios:
    """Makes a reduction to the mean of the rows' `correct` in percent, called `figure`.

    The same mean is taken among the rows of each value of the fields `by`, as `figure/value`. Where rows say whether
    they were `unparsed`, that share is a figure too.
    """

    def parts(row: Row) -> Parts:
        share = (100.0 * row["correct"], 1.0)
        values = [str(row[field]) for field in by if row.get(field) not in (None, "")]
        found = {figure: share, **{f"{figure}/{value}": share for value in values}}
        return found | ({"unparsed": (100.0 * row["unparsed"], 1.0)} if "unparsed" in row else {})

    return Ratios(parts, (figure,))


def unparsed(rows: Sequence[Row]) -> dict[str, float]:
    """The share of answers that could not be read, where the rows say so."""
    return {"unparsed": percent(rows, "unparsed")} if all("unparsed" in row for row in rows) else {}


def counts(rows: Sequence[Row]) -> dict[str, float]:
    """Figures of a split whose truth only a server knows: how many `answers` there are, and what share is `empty`."""
    return {
        "answers": float(len(some(rows))),
        "empty": 100 * mean(not str(row.get("answer", "")).strip() for row in rows),
    }
