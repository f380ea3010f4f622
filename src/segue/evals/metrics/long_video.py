"""What only single sets of questions about long videos have: open answers of VideoMMMU, the averages of MLVU, the
question types of TempCompass, the dimensions of MMBench-Video.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from segue.evals.base import Row
from segue.evals.metrics.choices import behind_answer, named, stated, yes_or_no
from segue.evals.metrics.figures import grouped, mean, percent, shares, some, unparsed
from segue.evals.metrics.llm_judge import Scale, ratings, to_rate
from segue.types import Answer, Sample

CAPTION_SCALE: Scale = (0.0, 1.0)
MLVU_SCALE: Scale = (2.0, 10.0)
MMBENCH_VIDEO_SCALE: Scale = (0.0, 3.0)

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+(?:[eE][+-]?\d+)?)")
_LEADS = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ", "total ", "identify "),
    *("recognize ", "calculated as ", "counted as ", "measured as ", "observed as ", "concluded as ", "found to be "),
    *("equals ", "determined to be ", "number of ", "adds up to ", "have ", "has "),
)


def open_answer(text: str) -> list[str | float]:
    """What an open answer may be taken to say: of each sentence the shortest piece behind a word that leads to an
    answer, or all of it where no sentence has one, and the numbers in these, to two decimals.

    Source: Yue et al. 2024 (MMMU), whose evaluation VideoMMMU uses.
    """
    whole = text.rpartition("Answer:")[2].strip().removesuffix(".").lower()
    sentences = re.split(r"\.\s|\n", whole)
    pieces: list[str] = []
    for place, sentence in enumerate(sentences):
        leads = (*_LEADS, "=") if place == len(sentences) - 1 else _LEADS
        behind = [sentence.rpartition(lead)[2].strip() for lead in leads if lead in sentence]
        pieces += [piece for piece in [min(behind, key=len, default="")] if piece.strip(":,.!?;'")]
    pieces = pieces or ([whole] if whole else [])
    return [*map(_value, pieces), *(_value(number) for piece in pieces for number in _NUMBER.findall(piece))]


def is_open_answer(said: Sequence[str | float], reference: str) -> bool:
    """Whether one of the readings is the reference's number, or holds its words; a single letter must stand alone."""
    truth = _value(reference)
    if isinstance(truth, float):
        return truth in said
    return bool(truth) and any(
        isinstance(one, str) and (truth in one if len(truth) > 1 else truth in one.split()) for one in said
    )


def _value(text: str) -> str | float:
    try:
        return round(float(text.strip().replace(",", "")), 2)
    except (ValueError, OverflowError):
        return text.strip().lower()


def video_mmmu_score(sample: Sample, answer: Answer) -> Row:
    """A letter against `target["letter"]`; where there are no options, an open answer against `target["answers"]`."""
    target = sample.target
    if target["options"]:
        chosen = behind_answer(answer.text, target["options"])
        is_right, is_read = chosen is not None and chosen == target["letter"], chosen is not None
    else:
        said = open_answer(answer.text)
        is_right, is_read = any(is_open_answer(said, one) for one in target["answers"]), bool(said)
    return _row(sample, answer, is_right, is_read)


def tempcompass_score(sample: Sample, answer: Answer) -> Row:
    """By `target["kind"]`: a letter, the name or words of a caption, yes or no; a description waits for a judge, who
    says by a 1 that the question beside it can be answered rightly from it.
    """
    target, kind = sample.target, sample.target["kind"]
    if kind == "captioning":
        return to_rate(CAPTION_SCALE)(sample, answer)
    if kind == "yes_no":
        said = yes_or_no(answer.text)
        return _row(sample, answer, said == target["answers"][0].strip().lower(), said is not None)
    chosen = (named if kind == "caption_matching" else stated)(answer.text, target["options"])
    return _row(sample, answer, chosen is not None and chosen == target["letter"], chosen is not None)


def _row(sample: Sample, answer: Answer, is_right: bool, is_read: bool) -> Row:
    return {
        **sample.target,
        "answer": answer.text.strip(),
        "correct": float(is_right),
        "unparsed": not is_read,
    }


def tempcompass_reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`accuracy` over all questions that need no judge and all descriptions that have been judged, by kind and aspect.

    Descriptions that wait are left out and counted: `judged` is the share of descriptions with a rating, and all there
    is of rows that all wait.
    """
    descriptions = [row for row in some(rows) if row["kind"] == "captioning"]
    known = [{**row, "correct": row["rating"]} for row in descriptions if row["rating"] is not None]
    others = [row for row in rows if row["kind"] != "captioning"]
    scored = [{**row, "unparsed": row.get("unparsed", not row["answer"])} for row in (*others, *known)]
    figures = shares(by=("kind", "aspect"))(scored) if scored else {}
    return figures | ({"judged": 100 * len(known) / len(descriptions)} if descriptions else {})


def mlvu_reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`m_avg`: the mean over tasks of the accuracy in percent. See `mlvu_pooled` in the table of parity."""
    tasks = {f"accuracy/{task}": percent(part) for task, part in grouped(some(rows), "kind").items()}
    return {"m_avg": mean(tasks.values())} | tasks | unparsed(rows)


def mlvu_open_reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`g_avg`: the mean over tasks of the mean rating, which is the sum of two from 1 to 5."""
    figures = ratings("rating", by=("kind",))(rows)
    tasks = [value for name, value in figures.items() if name.startswith("rating/")]
    return figures | ({"g_avg": mean(tasks)} if tasks else {})


def mmbench_video_reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`rating`: the mean from 0 to 3, also by fine and by coarse dimension and for `Perception` and `Reasoning`.

    A question may have several dimensions and counts once in each, and once in each coarse one.
    """
    widened = [{**row, "dimension": [*row["dimension"], *sorted(wider(row["dimension"]))]} for row in some(rows)]
    return ratings("rating", by=("dimension",))(widened)


_DIMENSIONS = {
    "CP": ("Video Topic", "Video Emotion", "Video Scene", "Video Style"),
    "FP-S": (*("OCR", "Object Recognition", "Attribute Recognition", "Event Recognition", "Human Motion", "Counting"),),
    "FP-C": ("Spatial Relationship", "Human-object Interaction", "Human Interaction"),
    "HL": ("Hallucination",),
    "LR": ("Structuralized Image-Text Understanding", "Mathematical Calculation"),
    "AR": ("Physical Property", "Function Reasoning", "Identity Reasoning"),
    "RR": ("Natural Relation", "Physical Relation", "Social Relation"),
    "CSR": ("Common Sense Reasoning",),
    "TR": ("Counterfactual Reasoning", "Causal Reasoning", "Future Prediction"),
}
_PERCEPTION = ("CP", "FP-S", "FP-C", "HL")


def wider(dimensions: Sequence[str]) -> set[str]:
    """The coarse dimensions of MMBench-Video that hold any of these fine ones, and Perception or Reasoning above."""
    coarse = {name for name, fine in _DIMENSIONS.items() if set(fine) & set(dimensions)}
    return coarse | {"Perception" if name in _PERCEPTION else "Reasoning" for name in coarse}
