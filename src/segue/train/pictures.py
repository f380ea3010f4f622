"""Held-out rows as pictures for the report: what is marked, and beside it what was found."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from segue.data.base import rng_for
from segue.data.mixture import Part
from segue.media import read_frames, read_image
from segue.media.render import overlay
from segue.types import MaskTrack, Media, Sample

SIDE = 320
"""Longest side of each half of a picture, in pixels."""
GAP = 8
"""Width of the white line between the halves, in pixels."""


def pair(case: Mapping[str, Any], parts: Sequence[Part], seed: int) -> str:
    """A row of `validation.json` as a picture that can stand in a page: a `data:` address.

    Raises: SegueError, if the row cannot be read any more.
    """
    part = next(part for part in parts if part.name == case["part"])
    sample = part.dataset.get(case["row"], rng_for(seed, 0, case["row"]))
    pixels, place = _shown(sample, case["frame"])
    truth = [region.masks.dense(place) for region in sample.regions[: len(case["masks"])] if region.masks]
    found = [MaskTrack(tuple(rle["size"]), np.zeros(1, np.int64), (rle["counts"],)).dense() for rle in case["masks"]]
    one, other = (_half(pixels, masks) for masks in (truth, found))
    gap = np.full((len(one), GAP, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([one, gap, other], axis=1)).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _shown(sample: Sample, frame: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The frame's pixels, and its place among the sample's."""
    media = next(part for message in sample.messages for part in message.parts if isinstance(part, Media))
    if media.kind == "image":
        return read_image(media), 0
    return read_frames(media, (frame,)).pixels[0], sample.frames.index(frame)


def _half(pixels: UInt8[np.ndarray, "h w 3"], masks: Sequence[Bool[np.ndarray, "_ _"]]) -> UInt8[np.ndarray, "a b 3"]:
    """The image with masks on it, which may be of another size, brought to `SIDE`."""
    scale = SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    image = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    fitted = [np.asarray(Image.fromarray(mask).resize(size)) for mask in masks]
    return overlay(image, np.stack(fitted), [""] * len(fitted))
