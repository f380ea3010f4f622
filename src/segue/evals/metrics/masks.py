"""How well masks agree, for whole clips at once or pixel by pixel.

Letters in shapes: t frames (or any other stack of masks), h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from segue.errors import ConfigError
from segue.geometry.masks import boundary

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
    return _each(found, truth, _similarity)[0]


def contour_accuracy(found: Bool[np.ndarray, "t h w"], truth: Bool[np.ndarray, "t h w"]) -> Float[np.ndarray, " t"]:
    """F: how well the outlines of each frame agree, in [0, 1], as the harmonic mean of precision and recall.

    A pixel of an outline agrees if the other outline passes within `TOLERANCE` of it. Two masks without outline score
    1, one alone 0.

    Source: the DAVIS benchmark; outlines as in the Berkeley segmentation benchmark's `seg2bmap`.
    """
    return _each(found, truth, _accuracy)[0]


def agreement(
    found: Bool[np.ndarray, "t h w"], truth: Bool[np.ndarray, "t h w"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """J and F of each frame, as `region_similarity` and `contour_accuracy` give them, from one look at the masks."""
    similarity, accuracy = _each(found, truth, _similarity, _accuracy)
    return similarity, accuracy


def outline(masks: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """Pixels whose neighbour to the east, south or south-east differs; what lies beyond the frame is like its edge."""
    whole = _Packed.of(_octets(masks)[None], masks.shape[2])
    return whole.unpacked(whole.outlines)


def dilate(masks: Bool[np.ndarray, "t h w"], radius: int) -> Bool[np.ndarray, "t h w"]:
    """Masks grown by a disk: every pixel at most `radius` from one that was set."""
    whole = _Packed.of(_octets(masks)[None], masks.shape[2])
    return whole.unpacked(_grown(whole.words & whole.inside, radius))


def cl_dice(found: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """How well thin, branching things agree, in [0, 1]: the harmonic mean of two shares of centre lines.

    They are the share of the found centre line that lies in the true mask and the share of the true one that lies in
    the found mask. Nothing found of nothing is 1, one without the other 0.

    Raises: ConfigError, without scikit-image, which the extra `eval` brings.
    Source: Shit et al. 2021 (clDice).
    """
    if not (found.any() and truth.any()):
        return float(found.any() == truth.any())
    thin = library("skimage.morphology").skeletonize
    mine, other = thin(found), thin(truth)
    precision, recall = truth[mine].mean(), found[other].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def hd95(found: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """How far apart outlines lie, in pixels; 0 is best.

    Of the distances from each pixel of one outline to the nearest of the other, both ways together, the 95th
    percentile. An outline is the mask's pixels with one outside at a side. Nothing found of nothing is 0; one without
    the other is as far apart as the frame allows: its diagonal.

    Raises: ConfigError, without SciPy, which the extra `eval` brings.
    Source: the Hausdorff distance as MedPy's `hd95` has it.
    """
    if not (found.any() and truth.any()):
        return 0.0 if found.any() == truth.any() else math.hypot(*found.shape)
    distance = library("scipy.ndimage").distance_transform_edt
    mine, other = boundary(found), boundary(truth)
    apart = np.concatenate([distance(~other)[mine], distance(~mine)[other]])
    return float(np.percentile(apart, 95))


def library(name: str) -> Any:
    """A module that a figure needs and the extra `eval` brings.

    Raises: ConfigError, if it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this figure needs {name.split('.')[0]}; install it with: pip install 'segue[eval]'"
        ) from error


# Below, masks are packed into words of 64 pixels of a row, so that one operation on words is one on 64 pixels. A word
# has 48 pixels of its own, the leftmost lowest, and 8 on either side that are its neighbours', so that a pixel can be
# moved that far without looking at another word. Letters in shapes: m kinds of masks (found and true), n words of a
# row. Rows come last, because there are more of them than words in a row, and numpy is quick along the last axis.

_OWN = 48
_SIDE = 8
_ONE = np.uint64(1)
_OWN_BITS = np.uint64(((1 << _OWN) - 1) << _SIDE)
_CHUNK = 4
"""Frames that are looked at together, in the box that holds all their masks."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """Masks of some frames in a box. The pixel to the right of the frame's last is like the last; `inside` are pixels
    of the frame that are a word's own."""

    words: UInt64[np.ndarray, "m t n h"]
    inside: UInt64[np.ndarray, "n 1"]

    @classmethod
    def of(cls, octets: UInt8[np.ndarray, "m t h o"], width: int) -> _Packed:
        """From bytes of 8 pixels; `width` is how many pixels it is from the first to the frame's right edge."""
        *some, height, length = octets.shape
        count = -(-length * 8 // _OWN)
        row = 6 * count + 2
        padded = np.zeros((*some, height, row), np.uint8)
        padded[..., 1 : 1 + length] = octets
        every_sixth = np.ndarray((*some, height, count), "<u8", padded, strides=(*padded.strides[:-1], _OWN // 8))
        words = every_sixth.swapaxes(-1, -2).astype(np.uint64, order="C")
        own = [((1 << min(max(width - _OWN * number, 0), _OWN)) - 1) << _SIDE for number in range(count)]
        return cls(words, np.array(own, np.uint64)[:, None])

    @property
    def outlines(self) -> UInt64[np.ndarray, "m t n h"]:
        """The outlines of all masks, in words that know their own pixels only."""
        words = self.words
        south = np.concatenate([words[..., 1:], words[..., -1:]], axis=-1)
        different: np.ndarray = (words ^ words >> _ONE) | (words ^ south) | (words ^ south >> _ONE)
        return different & self.inside

    def unpacked(self, words: UInt64[np.ndarray, "1 t n h"]) -> Bool[np.ndarray, "t h w"]:
        """Pixels of words that begin where the frame does."""
        width = sum(int(own).bit_count() for own in self.inside[:, 0])
        octets = (words[0].swapaxes(1, 2) >> np.uint64(_SIDE)).astype("<u8", order="C")[..., None].view(np.uint8)
        rows = octets[..., : _OWN // 8].reshape(*octets.shape[:2], -1)
        return np.unpackbits(rows, axis=2, count=width, bitorder="little").view(bool)


def _each(
    found: Bool[np.ndarray, "t h w"],
    truth: Bool[np.ndarray, "t h w"],
    *figures: Callable[[_Packed, int], Float[np.ndarray, " _"]],
) -> list[Float[np.ndarray, " t"]]:
    """Figures of each frame, from masks of a few frames at a time and the tolerance of their size."""
    radius = math.ceil(TOLERANCE * math.hypot(*found.shape[1:]))
    scored = [[figure(pair, radius) for figure in figures] for pair in _pairs(found, truth)]
    return [np.concatenate([np.zeros(0), *(row[place] for row in scored)]) for place in range(len(figures))]


def _pairs(found: Bool[np.ndarray, "t h w"], truth: Bool[np.ndarray, "t h w"]) -> Iterator[_Packed]:
    """A box has a row and 8 pixels more than the masks in it above and to the left, where outlines begin."""
    for start in range(0, len(found), _CHUNK):
        pair = np.stack([_octets(masks[start : start + _CHUNK]) for masks in (found, truth)])
        seen = np.bitwise_or.reduce(pair, axis=(0, 1))
        columns, rows = np.flatnonzero(np.bitwise_or.reduce(seen)), np.flatnonzero(np.bitwise_or.reduce(seen, axis=1))
        if not len(rows):
            columns = rows = np.zeros(1, int)
        top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
        box = pair[:, :, top : int(rows[-1]) + 2, left : int(columns[-1]) + 1]
        yield _Packed.of(box, found.shape[2] - 8 * left)


def _octets(masks: Bool[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h o"]:
    """Bytes of 8 pixels of a row, the leftmost lowest, with one pixel more than the row has, which is like its last."""
    octets = np.packbits(masks, axis=2, bitorder="little")
    beyond, bit = divmod(masks.shape[2], 8)
    last = masks[:, :, -1].astype(np.uint8) << bit
    if not bit:
        return np.concatenate([octets, last[:, :, None]], axis=2)
    octets[:, :, beyond] |= last
    return octets


def _similarity(pair: _Packed, radius: int) -> Float[np.ndarray, " t"]:
    own = pair.words & pair.inside
    union = _count(own[0] | own[1])
    similarity: np.ndarray = np.where(union > 0, _count(own[0] & own[1]) / np.maximum(union, 1), 1.0)
    return similarity


def _accuracy(pair: _Packed, radius: int) -> Float[np.ndarray, " t"]:
    outlines = pair.outlines
    length, agreeing = _count(outlines), _count(outlines & _grown(outlines, radius)[::-1])
    precision, recall = np.where(length > 0, agreeing / np.maximum(length, 1), 1.0)
    total = precision + recall
    accuracy: np.ndarray = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return accuracy


def _count(words: UInt64[np.ndarray, "*mt n h"]) -> Int[np.ndarray, "*mt"]:
    counts: np.ndarray = np.bitwise_count(words).sum(axis=(-2, -1), dtype=np.int64)
    return counts


def _grown(own: UInt64[np.ndarray, "m t n h"], radius: int) -> UInt64[np.ndarray, "m t n h"]:
    """Row by row of the disk, from its poles to its equator, which are as many rows away and wider each time.

    Words are given with their own pixels alone, and come back right in these.
    """
    height = own.shape[-1]
    grown, wide, reach = np.zeros_like(own), _with_sides(own), 0
    for rise in range(radius, -1, -1):
        for _ in range(math.isqrt(radius**2 - rise**2) - reach):
            if reach and reach % _SIDE == 0:
                wide = _with_sides(wide & _OWN_BITS)
            wide |= (wide << _ONE) | (wide >> _ONE)
            reach += 1
        if rise < height:
            grown[..., rise:] |= wide[..., : height - rise]
            grown[..., : height - rise] |= wide[..., rise:]
    return grown


def _with_sides(own: UInt64[np.ndarray, "m t n h"]) -> UInt64[np.ndarray, "m t n h"]:
    """Words with the pixels of their neighbours beside their own."""
    whole = own.copy()
    whole[..., 1:, :] |= own[..., :-1, :] >> np.uint64(_OWN)
    whole[..., :-1, :] |= own[..., 1:, :] << np.uint64(_OWN)
    return whole
