"""Figures of the generated scenes' test split: every kind of question about every scene, each row of one kind.

`target["kind"]` says which: "mask" (a phrase to segment), "box" (a box to give in words), "closed" (a short answer),
"region" (a marked thing to name). All figures are shares, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from segue.errors import DataError
from segue.evals.base import Row
from segue.evals.masks import contour_accuracy, overlap, region_similarity
from segue.evals.own_masks import joined
from segue.geometry.boxes import iou
from segue.geometry.masks import box_of
from segue.geometry.notation import parse_boxes
from segue.types import Answer, Media, Sample


def score(sample: Sample, answer: Answer) -> Row:
    """The row of an answer: pixels of masks, or whether the words are right."""
    return {"kind": sample.target["kind"], "of": sample.target["of"]} | _SCORES[sample.target["kind"]](sample, answer)


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """Figures by kind of question; a kind that no row has has none.

    Raises: DataError, for no rows.
    """
    if not rows:
        raise DataError("no row was answered, so there is no figure")
    masks = [row for row in rows if row["kind"] == "mask"]
    stills = [row for row in masks if row["is_target"] and not row["is_clip"]]
    clips = [row for row in masks if row["is_target"] and row["is_clip"]]
    closed = [row for row in rows if row["kind"] == "closed"]
    similarity, accuracy = _mean(clips, "similarity"), _mean(clips, "accuracy")
    figures = {
        "image cIoU": _ciou(stills),
        **{f"image cIoU, {kind}": _ciou(part) for kind, part in _by_kind(stills)},
        "no-target accuracy": _mean([row for row in masks if not row["is_target"]], "is_right"),
        "target accuracy": _mean([row for row in masks if row["is_target"]], "is_right"),
        "video J&F": None if similarity is None or accuracy is None else (similarity + accuracy) / 2,
        "video J": similarity,
        "video F": accuracy,
        "box accuracy@0.5, in words": _mean([row for row in rows if row["kind"] == "box"], "is_right"),
        "box accuracy@0.5, of masks": _mean([row for row in stills if row["is_boxed"] is not None], "is_boxed"),
        "closed questions": _mean(closed, "is_right"),
        **{f"closed questions, {kind}": _mean(part, "is_right") for kind, part in _by_kind(closed)},
        "regions named, kind and colour": _mean([row for row in rows if row["kind"] == "region"], "is_right"),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _mask(sample: Sample, answer: Answer) -> Row:
    is_clip, is_target = _media(sample).kind == "video", bool(sample.regions)
    found, truth = joined(answer.regions, sample), joined(sample.regions, sample)
    row: Row = {"is_clip": is_clip, "is_target": is_target, "is_right": bool(found.any()) == is_target}
    if not is_target:
        return row
    if is_clip:
        similarity, accuracy = region_similarity(found, truth), contour_accuracy(found, truth)
        return row | {"similarity": float(similarity.mean()), "accuracy": float(accuracy.mean())}
    both = overlap(found, truth)
    is_boxed = None
    if len(sample.regions) == 1:
        boxes = [box_of(mask[0]) for mask in (found, truth)]
        is_boxed = all(box is not None for box in boxes) and float(iou(*(box[None] for box in boxes))[0, 0]) >= 0.5
    return row | {"shared": both.shared, "joined": both.found + both.truth - both.shared, "is_boxed": is_boxed}


def _box(sample: Sample, answer: Answer) -> Row:
    given = [one.box for one in parse_boxes(answer.raw_text, _media(sample).size) if one.box is not None]
    wanted = np.array([sample.target["box"]], np.float64)
    return {"is_right": bool(given) and float(iou(np.stack(given[:1]), wanted)[0, 0]) >= 0.5}


def _closed(sample: Sample, answer: Answer) -> Row:
    return {"is_right": answer.text == sample.messages[-1].text, "said": answer.text}


def _region(sample: Sample, answer: Answer) -> Row:
    is_right = all(any(word in answer.text for word in words) for words in sample.target["words"])
    return {"is_right": is_right, "said": answer.text}


_SCORES: Mapping[str, Callable[[Sample, Answer], Row]] = {
    "mask": _mask,
    "box": _box,
    "closed": _closed,
    "region": _region,
}


def _media(sample: Sample) -> Media:
    return next(part for message in sample.messages for part in message.parts if isinstance(part, Media))


def _by_kind(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    kinds = sorted({row["of"] for row in rows})
    return [(kind, [row for row in rows if row["of"] == kind]) for kind in kinds]


def _ciou(rows: Sequence[Row]) -> float | None:
    return sum(row["shared"] for row in rows) / max(sum(row["joined"] for row in rows), 1) if rows else None


def _mean(rows: Sequence[Row], field: str) -> float | None:
    return float(np.mean([row[field] for row in rows])) if rows else None
