"""How well masks agree, for whole clips at once or pixel by pixel.

Letters in shapes: t frames (or any other stack of masks), h w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

TOLERANCE = 0.008
"""How far apart outlines may lie and still agree, as a share of the frame's diagonal."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixels of two masks: how many both have, how many the found one has and how many the true one.

    Overlaps add up, so that images can be taken together as one. What is a share of nothing is None: precision where
    nothing was found of something, recall where something was found of nothing. Nothing found of nothing is right in
    every respect.
    """

    shared: int = 0
    found: int = 0
    truth: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.shared + other.shared, self.found + other.found, self.truth + other.truth)

    @property
    def iou(self) -> float:
        """Shared pixels over those in either mask, in [0, 1]."""
        union = self.found + self.truth - self.shared
        return self.shared / union if union else 1.0

    @property
    def dice(self) -> float:
        """Twice the shared pixels over the pixels of both masks, in [0, 1]."""
        total = self.found + self.truth
        return 2 * self.shared / total if total else 1.0

    @property
    def precision(self) -> float | None:
        """The share of what was found that is true, in [0, 1]."""
        if self.found:
            return self.shared / self.found
        return None if self.truth else 1.0

    @property
    def recall(self) -> float | None:
        """The share of what is true that was found, in [0, 1]."""
        if self.truth:
            return self.shared / self.truth
        return None if self.found else 1.0


def overlap(found: Bool[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> Overlap:
    """Pixels counted over two masks of one shape, over all frames of a clip together."""
    return Overlap(int(np.count_nonzero(found & truth)), int(np.count_nonzero(found)), int(np.count_nonzero(truth)))


def region_similarity(found: Bool[np.ndarray, "t h w"], truth: Bool[np.ndarray, "t h w"]) -> Float[np.ndarray, " t"]:
    """J: intersection over union of each frame, in [0, 1]; 1 where both masks are empty.

    Source: the DAVIS benchmark (Perazzi et al. 2016).
    """
    union = np.count_nonzero(found | truth, axis=(1, 2))
    shared = np.count_nonzero(found & truth, axis=(1, 2))
    similarity: np.ndarray = np.where(union > 0, shared / np.maximum(union, 1), 1.0)
    return similarity


def contour_accuracy(found: Bool[np.ndarray, "t h w"], truth: Bool[np.ndarray, "t h w"]) -> Float[np.ndarray, " t"]:
    """F: how well the outlines of each frame agree, in [0, 1], as the harmonic mean of precision and recall.

    A pixel of an outline agrees if the other outline passes within `TOLERANCE` of it. Two masks without outline score
    1, one alone 0.

    Source: the DAVIS benchmark; outlines as in the Berkeley segmentation benchmark's `seg2bmap`.
    """
    height, width = found.shape[1:]
    radius = math.ceil(TOLERANCE * math.hypot(height, width))
    first, second = outline(found), outline(truth)
    precision = _share(first, dilate(second, radius))
    recall = _share(second, dilate(first, radius))
    total = precision + recall
    accuracy: np.ndarray = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    accuracy[~first.any(axis=(1, 2)) & ~second.any(axis=(1, 2))] = 1.0
    return accuracy


def outline(masks: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """Pixels whose neighbour to the east, south or south-east differs; what lies beyond the frame is like its edge."""
    padded = np.pad(masks, ((0, 0), (0, 1), (0, 1)), mode="edge")
    here = padded[:, :-1, :-1]
    different: np.ndarray = (here ^ padded[:, :-1, 1:]) | (here ^ padded[:, 1:, :-1]) | (here ^ padded[:, 1:, 1:])
    return different


def dilate(masks: Bool[np.ndarray, "t h w"], radius: int) -> Bool[np.ndarray, "t h w"]:
    """Masks grown by a disk: every pixel at most `radius` from one that was set."""
    height = masks.shape[1]
    sums = np.pad(masks, ((0, 0), (0, 0), (radius + 1, radius))).cumsum(axis=2, dtype=np.int32)
    grown = np.zeros_like(masks)
    for rise in range(min(radius, height - 1) + 1):
        reach = math.isqrt(radius**2 - rise**2)
        window = slice(radius + reach + 1, sums.shape[2] - radius + reach), slice(radius - reach, -radius - reach - 1)
        wide = sums[:, :, window[0]] > sums[:, :, window[1]]
        grown[:, rise:] |= wide[:, : height - rise]
        grown[:, : height - rise] |= wide[:, rise:]
    return grown


def _share(outlines: Bool[np.ndarray, "t h w"], near: Bool[np.ndarray, "t h w"]) -> Float[np.ndarray, " t"]:
    """The share of an outline's pixels that lie near the other; 1 of none."""
    count = np.count_nonzero(outlines, axis=(1, 2))
    share: np.ndarray = np.where(count > 0, np.count_nonzero(outlines & near, axis=(1, 2)) / np.maximum(count, 1), 1.0)
    return share
