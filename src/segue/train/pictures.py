"""Held-out rows as pictures for the report: what is marked, and beside it what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from segue.data.base import rng_for
from segue.data.mixture import MixturePart
from segue.media import read_frames
from segue.output import pages
from segue.types import MaskTrack, Sample


def pair(case: Mapping[str, Any], parts: Sequence[MixturePart], seed: int) -> str:
    """A row of `validation.json` as a picture that can stand in a page: a `data:` address.

    Raises: SegueError, if the row cannot be read any more.
    """
    part = next(part for part in parts if part.name == case["part"])
    sample = part.dataset.get(case["row"], rng_for(seed, 0, case["row"]))
    pixels, place = _shown(sample, case["frame"])
    truth = [region.masks.dense(place) for region in sample.regions[: len(case["masks"])] if region.masks]
    found = [MaskTrack(tuple(rle["size"]), np.zeros(1, np.int64), (rle["counts"],)).dense() for rle in case["masks"]]
    return pages.picture([pages.marked(pixels, masks) for masks in (truth, found)])


def _shown(sample: Sample, frame: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The frame's pixels, and its place among the sample's."""
    assert sample.target_media is not None
    return read_frames(sample.target_media, (frame,)).pixels[0], sample.frames.index(frame)
