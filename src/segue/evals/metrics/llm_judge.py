"""Answers that another model or a person has to rate: what they are given, and the figures of what they gave back.

Without ratings the figures are counts, and a submission holds what a judge needs. `rated` puts a judge's file into the
rows; after that the same reduction gives the figures. An answer without a word needs no judge: it gets the lowest
rating.

A judge's file has one JSON record a line, or is a list of them: {"id": the row's, "rating": a number on the scale}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segue.errors import DataError
from segue.evals.base import Reduce, Row, Score, Submit
from segue.evals.metrics.figures import grouped, mean, some
from segue.reading import read_text
from segue.types import Answer, Sample

Scale = tuple[float, float]
"""The lowest and the highest rating."""


def to_rate(scale: Scale) -> Score:
    """Makes a score: a row that waits for a rating on `scale`; what the target holds is kept for the judge.

    The question is what was asked, unless the target has a barer one.
    """

    def score(sample: Sample, answer: Answer) -> Row:
        said = answer.text.strip()
        return {
            "question": sample.messages[-2].text.strip(),
            **sample.target,
            "answer": said,
            "scale": list(scale),
            "rating": None if said else scale[0],
        }

    return score


def ratings(figure: str, *, times: float = 1.0, by: Sequence[str] = ()) -> Reduce:
    """Makes a reduction: the mean rating, times `times`, called `figure`, also within each value of the fields `by`.

    `judged` is the share of rows with a rating, in percent. Without any rating that is the only figure beside the
    number of `answers`.
    """

    def reduce(rows: Sequence[Row]) -> dict[str, float]:
        known = [row for row in some(rows) if row["rating"] is not None]
        figures = {"answers": float(len(rows)), "judged": 100 * len(known) / len(rows)}
        if any(row["answer"] for row in known) or len(known) == len(rows):
            figures[figure] = times * mean(row["rating"] for row in known)
            for field in by:
                for value, part in _spread(known, field).items():
                    figures[f"{figure}/{value}"] = times * mean(row["rating"] for row in part)
        return figures

    return reduce


def waiting(submit: Submit) -> Submit:
    """The same submission of the rows alone that a judge has still to rate."""

    def write(rows: Sequence[Row], path: Path) -> Path:
        return submit([row for row in rows if "rating" in row and row["rating"] is None], path)

    return write


def rated(rows: Sequence[Row], path: Path) -> list[Row]:
    """The rows with the ratings of a judge's file; rows that it does not name stay as they are.

    TouchStone's own result files are read too: the mean of what the answer got in its two rounds.

    Raises: DataError, for a file of another form, a row that is not among these or named twice, and a rating beyond the
        scale.
    """
    found: dict[str, float] = {}
    for number, record in enumerate(_records(path), start=1):
        name, rating = _rating(record, f"{path.name}, record {number}")
        if name in found:
            raise DataError(f"{path.name} rates row {name!r} twice; keep one rating")
        found[name] = rating
    if unknown := sorted(set(found) - {str(row["id"]) for row in rows}):
        raise DataError(
            f"{path.name} rates {unknown[0]!r}, which is no row of this run; give the judge's file of this run"
        )
    return [_with_rating(row, found, path.name) for row in rows]


def _with_rating(row: Row, found: Mapping[str, float], file: str) -> Row:
    if str(row["id"]) not in found:
        return row
    if "scale" not in row:
        raise DataError(f"{file} rates row {row['id']!r}, which is scored without a judge; take it out of the file")
    rating, (lowest, highest) = found[str(row["id"])], row["scale"]
    if not lowest <= rating <= highest:
        raise DataError(f"{file} gives row {row['id']!r} {rating:g}; expected {lowest:g} to {highest:g}")
    return {**row, "rating": rating}


def _spread(rows: Sequence[Row], field: str) -> dict[str, list[Row]]:
    """Rows by a field; where it is a list, a row belongs to each of its values."""
    single = [{**row, field: value} for row in rows for value in _listed(row.get(field))]
    return grouped(single, field)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _records(path: Path) -> list[Any]:
    try:
        text = read_text(path)
        if text.lstrip().startswith("["):
            records: list[Any] = json.loads(text)
            return records
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is neither JSON nor a JSON record a line: {error}; write it again") from error


def _rating(record: Any, where: str) -> tuple[str, float]:
    readers: tuple[Callable[[Any], tuple[Any, float]], ...] = (
        lambda one: (one["id"], float(one["rating"])),
        lambda one: (one["ques_id"], (float(one["round1"]["score2"]) + float(one["round2"]["score1"])) / 2),
    )
    for read in readers:
        try:
            name, rating = read(record)
        except (KeyError, TypeError, ValueError):
            continue
        return str(name), rating
    raise DataError(f'{where} is {str(record)[:60]!r}; expected {{"id": ..., "rating": a number}}')
