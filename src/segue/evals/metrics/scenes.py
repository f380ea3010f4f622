"""Figures of the generated scenes' test split: every kind of question about every scene, each row of one kind.

`target["kind"]` says which: "mask" (a phrase to segment), "box" (a box to give in words), "closed" (a short answer),
"region" (a marked thing to name). All figures are shares, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from segue.evals.base import Row, medium_of
from segue.evals.metrics.masks import contour_accuracy, overlap, region_similarity
from segue.evals.metrics.own_masks import joined
from segue.evals.metrics.ratios import Parts, Ratios
from segue.geometry.boxes import iou
from segue.geometry.masks import box_of
from segue.geometry.notation import parse_boxes
from segue.types import Answer, Media, Sample


def score(sample: Sample, answer: Answer) -> Row:
    """The row of an answer: pixels of masks, or whether the words are right."""
    return {"kind": sample.target["kind"], "of": sample.target["of"]} | _SCORES[sample.target["kind"]](sample, answer)


def _parts(row: Row) -> Parts:
    kind, right = row["kind"], float(row.get("is_right", 0))
    if kind != "mask":
        named = {"box": "box accuracy@0.5, in words", "region": "regions named, kind and colour"}
        parts = {named.get(kind, "closed questions"): (right, 1.0)}
        return parts | ({f"closed questions, {row['of']}": (right, 1.0)} if kind == "closed" else {})
    parts = {"target accuracy" if row["is_target"] else "no-target accuracy": (right, 1.0)}
    if row["is_target"] and row["is_clip"]:
        similarity, accuracy = row["similarity"], row["accuracy"]
        parts |= {"video J&F": ((similarity + accuracy) / 2, 1.0)}
        parts |= {"video J": (similarity, 1.0), "video F": (accuracy, 1.0)}
    elif row["is_target"]:
        pair = float(row["shared"]), float(row["joined"])
        parts |= {"image cIoU": pair, f"image cIoU, {row['of']}": pair}
        if row["is_boxed"] is not None:
            parts["box accuracy@0.5, of masks"] = float(row["is_boxed"]), 1.0
    return parts


reduce = Ratios(
    _parts,
    (
        "image cIoU",
        *(f"image cIoU, {kind}" for kind in ("attribute", "extreme", "place", "relation")),
        *("no-target accuracy", "target accuracy", "video J&F", "video J", "video F"),
        *("box accuracy@0.5, in words", "box accuracy@0.5, of masks", "closed questions"),
    ),
)
"""Figures by kind of question; a kind that no row has has none."""


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
        mine, other = (box_of(mask[0]) for mask in (found, truth))
        is_boxed = mine is not None and other is not None and float(iou(mine[None], other[None])[0, 0]) >= 0.5
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
    media = medium_of(sample)
    assert media is not None
    return media
