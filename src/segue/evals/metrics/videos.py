"""Referring segmentation of videos: J and F of what was followed, by expression. Figures are in percent.

Of several masks an answer gives, the first is the one that was asked for; without one, every frame is empty.

Source: the DAVIS benchmarks (Perazzi et al. 2016, Pont-Tuset et al. 2017, Caelles et al. 2019), ReVOS (Yan et al. 2024)
for robustness, Sa2VA's evaluation of all of them by expression.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from segue.evals.base import Reduce, Row
from segue.evals.metrics.figures import grouped, mean, some, unparsed
from segue.evals.metrics.masks import agreement, library
from segue.evals.metrics.own_masks import joined
from segue.files import atomic_path
from segue.types import Answer, MaskTrack, Media, Region, Sample

Masks = Bool[np.ndarray, "t h w"]


def score(sample: Sample, answer: Answer) -> Row:
    """J and F, the mean over all frames, in percent; `kind` is the `type_id` of the expression, if it has one."""
    found, truth = joined(_first(answer), sample), joined(sample.regions, sample)
    return _agreement(found, truth) | {"kind": sample.target.get("type_id"), "unparsed": not _first(answer)}


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`J`, `F` and their mean `J&F`, the mean over expressions."""
    return _figures(some(rows)) | unparsed(rows)


def reduce_kinds(**kinds: int) -> Reduce:
    """Makes a reduction to `J&F`, `J` and `F` by kind, and over all: the plain mean of kinds, whatever rows each has.

    A kind without rows does not count.
    """

    def reduce(rows: Sequence[Row]) -> dict[str, float]:
        parts = grouped(some(rows), "kind")
        return _of_kinds({name: _figures(parts[str(kind)]) for name, kind in kinds.items() if str(kind) in parts})

    return reduce


def score_revos(sample: Sample, answer: Answer) -> Row:
    """J, F, accuracy `A` of pixels and robustness `R`, in percent with two decimals, as the original keeps them.

    R is how little of the foreground that is not meant was found, by frame: 1 less its pixels over those of all of
    `target["foreground"]`.
    """
    found, truth = joined(_first(answer), sample), joined(sample.regions, sample)
    shown = _dense(sample.target["foreground"], found.shape[1:])
    wrong, all_ = (np.count_nonzero(masks, axis=(1, 2)) for masks in (found & ~truth, shown))
    robustness = np.maximum(1 - wrong / (all_ + 1e-6), 0)
    row = _agreement(found, truth)
    row |= {"A": 100 * float((found == truth).mean()), "R": 100 * float(robustness.mean())}
    row = {name: round(value, 2) for name, value in row.items()}
    return row | {"kind": sample.target.get("type_id"), "is_empty": not found.any()}


def reduce_revos(rows: Sequence[Row]) -> dict[str, float]:
    """As `reduce_kinds` for referring and reasoning, with `A` and `R`; and `no-target accuracy`, the share of
    expressions that mean nothing for which nothing was found.
    """
    parts = grouped(some(rows), "kind")
    names = {"referring": "0", "reasoning": "1"}
    figures = _of_kinds(
        {name: _figures(parts[kind], "A", "R") for name, kind in names.items() if kind in parts},
    )
    if nothing := parts.get("2"):
        figures["no-target accuracy"] = 100 * mean(row["is_empty"] for row in nothing)
    return figures


def score_objects(sample: Sample, answer: Answer) -> Row:
    """Found and true masks themselves: objects of a video are judged together, when all are there."""
    first = _first(answer)
    masks = [_counts(regions, sample) for regions in (first, sample.regions)]
    told = {name: sample.target[name] for name in ("video", "object", "annotator")}
    size = list(_media(sample).size)
    return told | {
        "size": size,
        "found": masks[0],
        "truth": masks[1],
        "void": sample.target.get("void", []),
        "unparsed": not first,
    }


def reduce_objects(rows: Sequence[Row]) -> dict[str, float]:
    """DAVIS 2017's own figures: `J`, `F`, `J&F` of its unsupervised task, and the same of the semi-supervised one.

    The objects that one annotator describes in a video become one picture a frame, in which each pixel has one object;
    where found masks overlap it is the object with the lowest number. Void pixels do not count. In the unsupervised
    task found and true objects are paired so that the sum of J&F is largest, over all frames; in the semi-supervised
    one an object is what it was asked for, without the first and the last frame. Figures are the mean over objects,
    then over annotators.

    Raises: ConfigError, without SciPy, which the extra `eval` brings.
    """
    ordered = sorted(some(rows), key=_place)
    by_annotator: dict[int, list[tuple[float, ...]]] = {}
    for (annotator, _), part in groupby(ordered, key=lambda row: _place(row)[:2]):
        objects = [_Object(*(tuple(row[name]) for name in ("size", "found", "truth", "void"))) for row in part]
        by_annotator.setdefault(annotator, []).extend(_judged(tuple(objects)))
    means = [[mean(values) for values in zip(*judged, strict=True)] for judged in by_annotator.values()]
    names = ("J", "F", "semi-supervised J", "semi-supervised F")
    figures = {name: 100 * mean(values) for name, values in zip(names, zip(*means, strict=True), strict=True)}
    for task in ("", "semi-supervised "):
        figures[f"{task}J&F"] = (figures[f"{task}J"] + figures[f"{task}F"]) / 2
    return figures | unparsed(rows)


def score_hidden(sample: Sample, answer: Answer) -> Row:
    """The masks that a server is to judge."""
    first = _first(answer)
    told = {name: sample.target[name] for name in ("video", "expression", "frames")}
    return told | {"size": list(_media(sample).size), "found": _counts(first, sample), "unparsed": not first}


def reduce_hidden(rows: Sequence[Row]) -> dict[str, float]:
    """How many `answers` there are, and what share has no mask."""
    return {"answers": float(len(some(rows))), "empty": unparsed(rows)["unparsed"]}


def submit(rows: Sequence[Row], path: Path) -> Path:
    """A zip of `Annotations/VIDEO/EXPRESSION/FRAME.png`, 8 bits, 255 where the mask is; the same rows, the same bytes.

    Raises: MediaError, if it cannot be written.
    """
    target = path.with_name(path.name + ".zip")
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for row in sorted(rows, key=lambda row: (row["video"], row["expression"])):
            for frame, mask in zip(row["frames"], _dense(row["found"], row["size"]), strict=True):
                picture = io.BytesIO()
                Image.fromarray(mask.astype(np.uint8) * 255).save(picture, format="PNG")
                archive.writestr(
                    zipfile.ZipInfo(f"Annotations/{row['video']}/{row['expression']}/{frame}.png"), picture.getvalue()
                )
    return target


def _first(answer: Answer) -> list[Region]:
    return [region for region in answer.regions if region.masks is not None][:1]


def _media(sample: Sample) -> Media:
    return next(part for message in sample.messages for part in message.parts if isinstance(part, Media))


def _agreement(found: Masks, truth: Masks) -> Row:
    similarity, accuracy = agreement(found, truth)
    return {"J": 100 * float(similarity.mean()), "F": 100 * float(accuracy.mean())}


def _figures(rows: Sequence[Row], *others: str) -> dict[str, float]:
    figures = {name: mean(row[name] for row in rows) for name in ("J", "F", *others)}
    return {"J&F": (figures["J"] + figures["F"]) / 2, **figures}


def _of_kinds(kinds: dict[str, dict[str, float]]) -> dict[str, float]:
    names = next(iter(kinds.values()), {})
    figures = {name: mean(kind[name] for kind in kinds.values()) for name in names}
    return figures | {f"{name}/{kind}": kinds[kind][name] for kind in kinds for name in names}


def _counts(regions: Sequence[Region], sample: Sample) -> list[str]:
    """The masks of the one region on the sample's frames; of no region, empty ones."""
    masks = regions[0].masks if regions else None
    if masks is None:
        return [""] * len(sample.frames)
    places = {int(number): place for place, number in enumerate(masks.index)}
    return [masks.rles[places[frame]] for frame in sample.frames]


def _dense(counts: Sequence[str], size: Sequence[int]) -> Masks:
    """Masks decoded; an empty text is an empty mask."""
    height, width = size
    track = MaskTrack((height, width), np.arange(len(counts)), tuple(counts))
    dense = np.zeros((len(counts), height, width), bool)
    for place, one in enumerate(counts):
        if one:
            dense[place] = track.dense(place)
    return dense


def _place(row: Row) -> tuple[int, str, int]:
    # a video that is drawn twice for a confidence interval has another group each time
    return row["annotator"], row.get("group") or row["video"], row["object"]


@dataclass(frozen=True, slots=True)
class _Object:
    """An object as it was found and as it is, and what is void, frame by frame."""

    size: tuple[int, ...]
    found: tuple[str, ...]
    truth: tuple[str, ...]
    void: tuple[str, ...]


@lru_cache(maxsize=1024)  # a confidence interval judges the same videos again and again
def _judged(objects: tuple[_Object, ...]) -> list[tuple[float, ...]]:
    """J and F of each object that an annotator describes in a video, in both tasks."""
    size, hidden = objects[0].size, objects[0].void
    found, truth = [_dense(one.found, size) for one in objects], [_dense(one.truth, size) for one in objects]
    void = _dense(hidden, size) if hidden else np.zeros_like(found[0])
    taken = void.copy()
    for mask in found:
        mask &= ~taken
        taken |= mask
    truth = [mask & ~void for mask in truth]
    scored = np.array([[[one.mean() for one in agreement(mine, true)] for true in truth] for mine in found])
    pairs: Callable[..., tuple[np.ndarray, np.ndarray]] = library("scipy.optimize").linear_sum_assignment
    mine, true = pairs(scored.mean(axis=2), maximize=True)
    paired: Float[np.ndarray, "n 2"] = scored[mine, true][np.argsort(true)]
    inner = [agreement(one[1:-1], other[1:-1]) for one, other in zip(found, truth, strict=True)]
    asked = [[float(one.mean()) if one.size else 1.0 for one in scores] for scores in inner]
    return [(float(pair[0]), float(pair[1]), *own) for pair, own in zip(paired, asked, strict=True)]
