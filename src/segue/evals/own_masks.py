"""One's own masks: what a model finds in a folder's images, scored at many thresholds from one pass.

Only a score reads the truth, and masks come from the model alone. A threshold is chosen on one split and used on
another: the report of the validation split has figures for every threshold, and the test split is scored once, at the
best.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from segue.engine import Answer
from segue.errors import DataError
from segue.evals.base import Benchmark, Row
from segue.evals.masks import Overlap, overlap
from segue.evals.stored import StoredAnswer
from segue.types import Media, Region, Sample

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FIGURES = ("dice", "iou", "precision", "recall")
_SCANNED = re.compile(r"(\w+)@(0\.\d+)")


def benchmark(split: str, *, phrase: str | None = None, group: str | None = None) -> Benchmark:
    """The questions of a folder's split, each phrase on its own; `phrase` and `group` as `segue.data.folder` knows."""
    options = {"each_phrase": True, "phrase": phrase, "group": group}
    return Benchmark(
        name="own_masks",
        dataset="folder",
        split=split,
        task="segment",
        options={name: value for name, value in options.items() if value is not None},
        settings={"keep_logits": True},
        thresholds=THRESHOLDS,
        score=score,
        reduce=reduce,
        headline="dice",
        protocol="own-masks/1",
        is_private=True,
    )


def score(sample: Sample, answer: Answer | StoredAnswer) -> Row:
    """Pixels of the mask that was found and of the true one, over all annotated frames; the same at each threshold.

    `is_emitted` is False where the model said no `[SEG]`: it did not look, which is another fault than a wrong mask.
    """
    truth = joined(sample.regions, sample)
    both = overlap(joined(answer.regions, sample), truth)
    scanned = {threshold: joined(answer.at_threshold(threshold).regions, sample) for threshold in THRESHOLDS}
    return {
        "is_target": bool(truth.any()),
        "is_emitted": bool(answer.regions),
        **counts(both),
        **{name: getattr(both, name) for name in FIGURES},
        "scan": {str(threshold): counts(overlap(found, truth)) for threshold, found in scanned.items()},
    }


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`dice`, `iou`, `precision` and `recall`, each the mean over the rows that have one; the first two also `pooled`,
    where a large object counts more than a small one; `emitted`, the share of rows with something to find for which
    the model said `[SEG]`; and each mean at every threshold, as `dice@0.3`.

    Raises: DataError, for no rows.
    """
    if not rows:
        raise DataError("no row was answered, so there is no figure")
    both = sum((_overlap(row) for row in rows), Overlap())
    figures = {name: _mean([row[name] for row in rows]) for name in FIGURES}
    figures |= {"pooled dice": both.dice, "pooled iou": both.iou}
    figures["emitted"] = _mean([float(row["is_emitted"]) for row in rows if row["is_target"]])
    for threshold in rows[0]["scan"]:
        overlaps = [_overlap(row["scan"][threshold]) for row in rows]
        for name in FIGURES:
            figures[f"{name}@{threshold}"] = _mean([getattr(one, name) for one in overlaps])
    return {name: value for name, value in figures.items() if value is not None}


def best_threshold(figures: Mapping[str, float | None], *, by: str = "dice") -> float:
    """The threshold at which a figure of a report is highest; of equal ones that nearest to 0.5.

    Raises: DataError, if the report has no figure of that name by threshold.
    """
    scanned = {
        float(found[2]): value
        for name, value in figures.items()
        if (found := _SCANNED.fullmatch(name)) and found[1] == by and value is not None
    }
    if not scanned:
        raise DataError(f"the report has no {by} by threshold; take one of a folder of masks")
    return max(scanned, key=lambda threshold: (scanned[threshold], -abs(threshold - 0.5)))


def joined(regions: Sequence[Region], sample: Sample) -> Bool[np.ndarray, "t h w"]:
    """All that any of the regions covers on the annotated frames."""
    media = next(part for message in sample.messages for part in message.parts if isinstance(part, Media))
    joined = np.zeros((len(sample.frames), *media.size), bool)
    for region in regions:
        if region.masks is not None:
            places = {int(number): place for place, number in enumerate(region.masks.index)}
            joined |= np.stack([region.masks.dense(places[frame]) for frame in sample.frames])
    return joined


def counts(both: Overlap) -> dict[str, Any]:
    """An overlap as JSON can hold it."""
    return {"shared": both.shared, "found": both.found, "truth": both.truth}


def _overlap(row: Mapping[str, Any]) -> Overlap:
    return Overlap(row["shared"], row["found"], row["truth"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
