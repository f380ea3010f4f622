"""Acc@0.5: boxes that a model gives in words, against the box of the thing that was named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from segue.evals.base import Row
from segue.evals.metrics.figures import mean, some, unparsed
from segue.geometry.boxes import iou
from segue.geometry.notation import corners
from segue.types import Answer, Sample

SCALE = 999
"""What stands for the whole width or height when Qwen-VL's boxes are judged; where they are drawn it is 1000."""

ENOUGH = 0.5


def score(sample: Sample, answer: Answer) -> Row:
    """IoU of the answer's first box with `target["box"]` on an image of `target["size"]` (height, width).

    A box is `(x1,y1),(x2,y2)` in Qwen-VL's notation, else the first that the engine read in another. An answer without
    one scores 0 and counts as unparsed.
    """
    truth = np.asarray(sample.target["box"], float)
    found = _first(answer, sample.target["size"])
    overlap = 0.0 if found is None else float(iou(found[None], truth[None])[0, 0])
    return {
        "answer": answer.text.strip(),
        "box": None if found is None else [round(float(edge), 4) for edge in found],
        "iou": overlap,
        "unparsed": found is None,
    }


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`acc@0.5`, the share of boxes that overlap the truth by half or more, and `iou`, the mean, in percent."""
    overlaps = [float(row["iou"]) for row in some(rows)]
    return {
        "acc@0.5": 100 * mean(overlap >= ENOUGH for overlap in overlaps),
        "iou": 100 * mean(overlaps),
    } | unparsed(rows)


def _first(answer: Answer, size: Sequence[int]) -> Float[np.ndarray, " 4"] | None:
    height, width = size
    if boxes := corners(answer.text):
        return np.array(boxes[0]) / SCALE * np.array([width, height, width, height])
    return next((region.box for region in answer.regions if region.box is not None and region.masks is None), None)
