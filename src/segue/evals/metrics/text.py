"""Short answers against references: exact match, edit distance, numbers within a tolerance.

References are `target["answers"]`, at least one; the best of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from segue.evals.base import Row, Score
from segue.types import Answer, Sample

TOLERANCE = 0.05
"""By what share of the reference a number may be off and still be right."""

LEAST_SIMILAR = 0.5
"""A similarity below this is none."""


def exact(answer: str, reference: str) -> float:
    """1 if both are the same but for case and space around them, else 0."""
    return float(answer.strip().lower() == reference.strip().lower())


def similarity(answer: str, reference: str) -> float:
    """Normalised Levenshtein similarity, in [0, 1], the mean of which is ANLS; below a half it is 0.

    Case and runs of white space do not count in the distance; the length it is divided by is that of the longer text as
    it stands. Two empty texts are the same.

    Source: Biten et al. 2019 (ST-VQA), in the form of InfographicVQA's evaluation.
    """
    longest = max(len(answer), len(reference))
    distance = levenshtein(" ".join(answer.lower().split()), " ".join(reference.lower().split()))
    found = 1 - distance / longest if longest else 1.0
    return found if found >= LEAST_SIMILAR else 0.0


def levenshtein(first: str, second: str) -> int:
    """The least number of letters to put in, take out or replace that turn one text into the other."""
    above = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        line = [row]
        for column, other in enumerate(second, start=1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (letter != other)))
        above = line
    return above[-1]


def relaxed(answer: str, reference: str, *, share_of: Literal["reference", "answer"] = "reference") -> float:
    """1 if both are numbers at most 5 % apart, or the same words but for case, else 0.

    "7%" is 0.07. A number with a thousands separator is a word, and so is everything beside a zero that would be
    divided by. `share_of` says of what the tolerance is a share; see `relaxed_swapped` in the table of parity.

    Source: Masry et al. 2022 (ChartQA), in the form of Pix2Struct's evaluation.
    """
    answer = answer.strip()
    found, truth = _number(answer), _number(reference)
    base = truth if share_of == "reference" else found
    if found is None or truth is None or not base:
        return float(answer.lower() == reference.lower())
    return float(abs(found - truth) / abs(base) <= TOLERANCE)


def _number(text: str) -> float | None:
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def gqa_answer(text: str) -> str:
    """What of an answer in words is compared in GQA: the piece behind the first "is", "are" or article.

    Source: Qwen-VL's evaluation.
    """
    text = text.strip().split(".")[0].split(",")[0].split("!")[0].lower()
    # PARITY(gqa_pieces): these are looked for anywhere, inside words too, and what follows a second one is lost
    for word in ("is ", "are ", "a ", "an ", "the "):
        if word in text:
            text = text.split(word)[1]
    return text.split(" of")[0].strip()


def best_of(
    compare: Callable[[str, str], float], *, read: Callable[[str], str] = str.strip, figure: str = "correct"
) -> Score:
    """Makes a score: the best of `compare(answer, reference)` over the references, kept in the row as `figure`.

    `read` takes from the answer what is compared.
    """

    def score(sample: Sample, answer: Answer) -> Row:
        found = read(answer.text)
        return {
            "question_id": sample.target["question_id"],
            "answer": found,
            "answers": list(sample.target["answers"]),
            figure: max(compare(found, reference) for reference in sample.target["answers"]),
        }

    return score


def hidden(sample: Sample, answer: Answer) -> Row:
    """A row of a split whose truth only a server knows: the answer alone."""
    return {**sample.target, "answer": answer.text.strip()}
