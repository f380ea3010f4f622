"""CIDEr of whole images' captions: what Nocaps and Flickr30k are quoted by, without the other scorers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from segue.evals.base import Row
from segue.evals.metrics import captions
from segue.evals.metrics.figures import mean, some, unparsed
from segue.types import Answer, Sample


def score(sample: Sample, answer: Answer) -> Row:
    """What was said, and `target["references"]`; the row names the image as a results file of COCO does."""
    return {"image_id": sample.target["image_id"], **captions.score(sample, answer)}


class Cider:
    """The reduction to `cider`, times 100: it can be above 100, and is 0 for a single image."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, float]:
        """The figure of some rows.

        Raises: DataError, for no rows.
        """
        return {"cider": 100 * mean(_each(some(rows)))} | unparsed(rows)

    def resampled(
        self, groups: Sequence[Sequence[Row]], drawn: Int[np.ndarray, "b g"], names: Sequence[str]
    ) -> Float[np.ndarray, "b k"]:
        """The named figures of each resample of groups. How telling a word is, the captions of all groups say."""
        rows = [row for group in groups for row in group]
        places = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        values = {"cider": 100 * np.array(_each(rows)), "unparsed": 100.0 * np.array([row["unparsed"] for row in rows])}
        times = np.stack([np.bincount(one, minlength=len(groups)) for one in drawn]).astype(np.float64)
        sizes = np.bincount(places, minlength=len(groups))
        sums = np.stack([np.bincount(places, values[name], len(groups)) for name in names], axis=1)
        figures: Float[np.ndarray, "b k"] = times @ sums / (times @ sizes)[:, None]
        return figures


reduce = Cider()


def _each(rows: Sequence[Row]) -> list[float]:
    """CIDEr of each caption."""
    found = [captions.words(row["caption"]) for row in rows]
    truth = [[captions.words(text) for text in row["references"]] for row in rows]
    return captions.cider(found, truth)
