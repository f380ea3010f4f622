"""LongVA's pixels: CLIP's resize and crop, and tiles of an image at the best of the resolutions a checkpoint lists.

Everything is resized with Pillow, as the models were trained; other backends give other pixels.

Source: EvolvingLMMs-Lab/LongVA, `longva/longva/mm_utils.py`, and the CLIP image processor of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segue.errors import DataError
from segue.models.tiling import check_oblong

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
Size = tuple[int, int]
"""(width, height), as Pillow and the checkpoints' lists of resolutions have it."""

_Any = TypeVar("_Any")


def cropped(image: Image.Image, side: int) -> Image.Image:
    """The middle square of an image whose shorter side was brought to `side`: the ends of a wide one are lost.

    Raises: DataError, for an image more than 200 times as long as it is wide.
    """
    width, height = image.size
    check_oblong(height, width)
    short, long = min(width, height), max(width, height)
    # PARITY(longva_long_side): the long side is cut to a whole number, not rounded
    long = int(side * long / short)
    size = (side, long) if width <= height else (long, side)
    scaled = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return scaled.crop((left, top, left + side, top + side))


def normalised(tiles: Sequence[Image.Image]) -> Float[Tensor, "p 3 s s"]:
    """Squares of one side as CLIP is given them."""
    if not tiles:
        raise DataError("there is no image to show; expected at least one")
    pixels = torch.from_numpy(np.stack([np.asarray(tile.convert("RGB")) for tile in tiles])).permute(0, 3, 1, 2)
    mean, deviation = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(DEVIATION).view(3, 1, 1)
    return (pixels / 255 - mean) / deviation


def best_resolution(size: Size, resolutions: Sequence[Size]) -> Size:
    """The resolution in which most of an image's own pixels survive; of several the one that wastes least."""
    width, height = size

    def merit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        seen = min(int(width * scale) * int(height * scale), width * height)
        return seen, seen - resolution[0] * resolution[1]

    # the first of the best, as in the list
    return max(resolutions, key=merit)


def tiles(image: Image.Image, resolution: Size, side: int) -> list[Image.Image]:
    """An image brought into a resolution, centred on black, cut into squares row by row."""
    width, height = image.size
    wide, high = resolution
    if wide / width < high / height:
        size = (wide, min(math.ceil(height * (wide / width)), high))
    else:
        size = (min(math.ceil(width * (high / height)), wide), high)
    canvas = Image.new("RGB", resolution, (0, 0, 0))
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), ((wide - size[0]) // 2, (high - size[1]) // 2))
    return [
        canvas.crop((left, top, left + side, top + side))
        for top in range(0, high, side)
        for left in range(0, wide, side)
    ]


def overview(image: Image.Image, side: int) -> Image.Image:
    """The whole image in one square, its aspect not kept. The original encodes it first and throws it away."""
    return image.resize((side, side), Image.Resampling.BICUBIC)
