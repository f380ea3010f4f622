"""Boxes in the one form used inside: x0 y0 x1 y1 in pixels of the original medium, right and bottom exclusive.

A box with x1 <= x0 or y1 <= y0 is empty: it has no area and overlaps nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union, in [0, 1], of every box of `first` with every box of `second`.

    A pair in which a box is empty scores 0, two empty boxes too: there is nothing to agree on. n and m may be 0.
    """
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = _area(np.concatenate([top_left, bottom_right], axis=-1))
    union = _area(first)[:, None] + _area(second)[None, :] - shared
    overlap: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return overlap


def clip(boxes: Float[np.ndarray, "*n 4"], size: tuple[int, int]) -> Float[np.ndarray, "*n 4"]:
    """The part of each box inside a medium of `size` (height, width); a box wholly outside becomes empty."""
    height, width = size
    clipped: np.ndarray = np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))
    return clipped


def from_xywh(boxes: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
    """Boxes given as left, top, width, height (the form of COCO files) in the inner form."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_xywh(boxes: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 4"]:
    """Boxes of the inner form as left, top, width, height (the form of COCO files)."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def _area(boxes: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n"]:
    areas: np.ndarray = np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)
    return areas
