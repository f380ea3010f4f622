"""MMBench: each question is asked once for every rotation of its options, and its rotations are judged together.

The rotations of a question are the rows of one group.

Source: Liu et al. 2023, the version of July 2023.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segue.data.questions import LETTERS
from segue.evals.base import Row
from segue.evals.metrics.figures import grouped, mean, percent, some, unparsed
from segue.evals.run.submissions import write_sheet


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`circular`: questions of which every rotation is right; `voted`: those whose most chosen option is right;
    `single`: right answers of all; in percent, the first also by `category`.
    """
    questions = _questions(some(rows))
    figures = {
        "circular": 100 * mean(all(row["correct"] for row in question) for question in questions),
        "voted": 100 * mean(_voted(question) == _right(question[0]) for question in questions),
        "single": percent(rows),
    }
    for category, part in grouped(rows, "category").items():
        figures[f"circular/{category}"] = 100 * mean(all(row["correct"] for row in one) for one in _questions(part))
    return figures | unparsed(rows)


def submit(rows: Sequence[Row], path: Path) -> Path:
    """The server's sheet: the columns of the data without the image, and `prediction`, the same option for all
    rotations of a question, which is the one that most of them chose.

    Raises: DataError, MediaError.
    """
    sheet = []
    for question in _questions(some(rows)):
        voted = _voted(question)
        for row in question:
            options = list(row["options"])
            letter = LETTERS[options.index(voted)] if voted in options else ""
            sheet.append({**row["columns"], "index": row["index"], "prediction": letter})
    sheet.sort(key=lambda record: int(record["index"]))
    return write_sheet(path.with_name(path.name + ".xlsx"), sheet)


def _questions(rows: Sequence[Row]) -> list[list[Row]]:
    return list(grouped(sorted(rows, key=lambda row: int(row["index"])), "group").values())


def _voted(question: Sequence[Row]) -> str | None:
    """The text of the option that most rotations chose; of several the one that came first, None if none was chosen."""
    chosen = [row["options"][LETTERS.index(row["chosen"])] for row in question if row["chosen"]]
    return Counter(chosen).most_common(1)[0][0] if chosen else None


def _right(row: Row) -> str:
    text: str = row["options"][LETTERS.index(row["letter"])]
    return text
