"""Referring segmentation of images: what a phrase or a question means, against what was found. Figures are in percent.

Source: RefCOCO's cumulative IoU (Yu et al. 2016), GRES (Liu et al. 2023) for gIoU and for phrases that mean nothing,
LISA (Lai et al. 2024) for ReasonSeg.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segue.evals.base import Row
from segue.evals.metrics.figures import mean, percent, some, unparsed
from segue.evals.metrics.masks import Overlap, overlap
from segue.evals.metrics.own_masks import joined
from segue.types import Answer, MaskTrack, Region, Sample


def score(sample: Sample, answer: Answer) -> Row:
    """Pixels of all that was found, together, and of all that is meant.

    Pixels of `target["ignored"]` do not count. An answer without a mask is an empty mask, and unparsed.
    """
    return _row(sample, answer.regions) | {"unparsed": not _masked(answer)}


def score_first(sample: Sample, answer: Answer) -> Row:
    """The same for the first mask of an answer alone."""
    return _row(sample, _masked(answer)[:1]) | {"unparsed": not _masked(answer)}


def score_general(sample: Sample, answer: Answer) -> Row:
    """The same where a phrase may mean nothing, which an answer says by no mask or an empty one."""
    return _row(sample, answer.regions)


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`cIoU`, of the pixels of all rows together, and `gIoU`, the mean over rows; nothing found of nothing is right."""
    overlaps = [_overlap(row) for row in some(rows)]
    together = sum(overlaps, Overlap())
    return {"cIoU": 100 * together.iou, "gIoU": 100 * mean(one.iou for one in overlaps)} | unparsed(rows)


def reduce_answered(rows: Sequence[Row]) -> dict[str, float]:
    """The same, but rows without a mask are left out of `cIoU`, which flatters a model that is silent."""
    # PARITY(silence_left_out): how the first generation of Sa2VA was measured
    answered = [row for row in some(rows) if not row["unparsed"]]
    return reduce(rows) | {"cIoU": reduce(answered)["cIoU"] if answered else 0.0}


def reduce_general(rows: Sequence[Row]) -> dict[str, float]:
    """`cIoU` and `gIoU`, and the shares that were told apart: `N-acc` of phrases that mean nothing, `T-acc` of others.

    A share of no rows is left out.
    """
    figures = reduce(rows)
    for name, is_target in (("N-acc", False), ("T-acc", True)):
        part = [{"correct": bool(row["found"]) == is_target} for row in rows if bool(row["truth"]) == is_target]
        figures |= {name: percent(part)} if part else {}
    return figures


def _row(sample: Sample, regions: Sequence[Region]) -> Row:
    found, truth = joined(regions, sample), joined(sample.regions, sample)
    if ignored := sample.target.get("ignored"):
        counts = ~MaskTrack(found.shape[1:], np.zeros(1, np.int64), (ignored,)).dense()
        found, truth = found & counts, truth & counts
    both = overlap(found, truth)
    return {"shared": both.shared, "found": both.found, "truth": both.truth}


def _masked(answer: Answer) -> list[Region]:
    return [region for region in answer.regions if region.masks is not None]


def _overlap(row: Row) -> Overlap:
    return Overlap(row["shared"], row["found"], row["truth"])
