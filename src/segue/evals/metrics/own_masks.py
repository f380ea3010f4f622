"""One's own masks: what a model finds in a folder's images, scored at many thresholds from one pass.

Only a score reads the truth, and masks come from the model alone. A threshold is chosen on one split and used on
another: the report of the validation split has figures for every threshold, and the test split is scored once, at the
best.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Bool

from segue.errors import DataError
from segue.evals.base import Benchmark, Row, medium_of
from segue.evals.metrics.masks import Overlap, cl_dice, hd95, overlap
from segue.evals.metrics.ratios import Parts, Ratios
from segue.evals.run.answer_store import StoredAnswer
from segue.output import answers
from segue.types import Answer, Region, Sample

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FIGURES = ("dice", "iou", "precision", "recall")
SHAPES = ("cl_dice", "hd95")
_SCANNED = re.compile(r"(\w+)@(0\.\d+)")


def score(sample: Sample, answer: Answer) -> Row:
    """Pixels of the mask that was found and of the true one, over all annotated frames; the same at each threshold.

    `is_emitted` is False where the model said no `[SEG]`: it did not look, which is another fault than a wrong mask.
    """
    assert isinstance(answer, answers.Answer | StoredAnswer)
    found, truth = joined(answer.regions, sample), joined(sample.regions, sample)
    both = overlap(found, truth)
    scanned = {threshold: joined(answer.at_threshold(threshold).regions, sample) for threshold in THRESHOLDS}
    return {
        "is_target": bool(truth.any()),
        "is_emitted": any(region.masks is not None for region in answer.regions),
        **counts(both),
        **{name: getattr(both, name) for name in FIGURES},
        **_shapes(found, truth),
        "scan": {str(threshold): counts(overlap(found, truth)) for threshold, found in scanned.items()},
    }


def _parts(row: Row) -> Parts:
    parts = {name: (row[name], 1.0) for name in (*FIGURES, *SHAPES) if row[name] is not None}
    both = _overlap(row)
    parts["pooled dice"] = 2.0 * both.shared, float(both.found + both.truth)
    parts["pooled iou"] = float(both.shared), float(both.found + both.truth - both.shared)
    if row["is_target"]:
        parts["emitted"] = float(row["is_emitted"]), 1.0
    for threshold, counted in row["scan"].items():
        one = _overlap(counted)
        found = ((name, getattr(one, name)) for name in FIGURES)
        parts |= {f"{name}@{threshold}": (value, 1.0) for name, value in found if value is not None}
    return parts


reduce = Ratios(_parts, (*FIGURES, *SHAPES))
"""Means over rows that have one: `dice`, `iou`, `precision`, `recall`, `cl_dice` of thin things, `hd95` in pixels.

The first two also `pooled`, where a large object counts more than a small one; `emitted`, the share of rows with
something to find for which the model said `[SEG]`; and the first four at every threshold, as `dice@0.3`.
"""


def benchmark(split: str, *, phrase: str | None = None, group: str | None = None) -> Benchmark:
    """The questions of a folder's split, each phrase on its own; `phrase`, `group` as in `segue.own_data.folder`."""
    options = {"phrase": phrase, "group": group}
    return Benchmark(
        name="own_masks",
        dataset="folder_questions",
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
    media = medium_of(sample)
    assert media is not None
    joined = np.zeros((len(sample.frames), *media.size), bool)
    for region in regions:
        if region.masks is not None:
            places = {int(number): place for place, number in enumerate(region.masks.index)}
            joined |= np.stack([region.masks.dense(places[frame]) for frame in sample.frames])
    return joined


def counts(both: Overlap) -> dict[str, Any]:
    """An overlap as JSON can hold it."""
    return {"shared": both.shared, "found": both.found, "truth": both.truth}


def _shapes(found: Bool[np.ndarray, "t h w"], truth: Bool[np.ndarray, "t h w"]) -> dict[str, float | None]:
    """Figures of shape, the means over frames; None without the libraries of the extra `eval`."""
    if not all(find_spec(name) for name in ("skimage", "scipy")):
        return dict.fromkeys(SHAPES)
    pairs = list(zip(found, truth, strict=True))
    return {
        name: float(np.mean([of(*pair) for pair in pairs])) for name, of in zip(SHAPES, (cl_dice, hd95), strict=True)
    }


def _overlap(row: Mapping[str, Any]) -> Overlap:
    return Overlap(row["shared"], row["found"], row["truth"])
