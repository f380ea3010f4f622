"""Images at their own resolution: their size, their patches, and where their tokens stand. Pure functions.

Source: Qwen2.5-VL's and Qwen3-VL's image processing as Sa2VA calls it (bytedance/Sa2VA,
`projects/sa2va/hf/models_qwen2_5_vl`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from segue.models.protocol import positions
from segue.models.tiling import check_oblong, resize

FRAMES_PER_PATCH = 2
_FIRST_UNIT, _FIRST_LEAST, _FIRST_MOST = 28, 4 * 28 * 28, 16384 * 28 * 28


def smart_resize(height: int, width: int, *, unit: int, least: int, most: int) -> tuple[int, int]:
    """The height and width nearest to an image's that are multiples of `unit` and hold `least` to `most` pixels.

    Raises: DataError, for an image more than 200 times as long as it is wide.
    """
    check_oblong(height, width)
    sides = (max(unit, round(height / unit) * unit), max(unit, round(width / unit) * unit))
    if math.prod(sides) > most:
        shrink = math.sqrt(height * width / most)
        return max(unit, int(height / shrink / unit) * unit), max(unit, int(width / shrink / unit) * unit)
    if math.prod(sides) < least:
        grow = math.sqrt(least / (height * width))
        return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
    return sides


def first_resize(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "u v 3"]:
    """The image with sides of multiples of 28 pixels, whatever its model counts in: the first of its two resizings."""
    height, width = smart_resize(*pixels.shape[:2], unit=_FIRST_UNIT, least=_FIRST_LEAST, most=_FIRST_MOST)
    return np.array(resize(Image.fromarray(pixels), width, height))


def double_resize(pixels: UInt8[np.ndarray, "h w 3"], *, unit: int, least: int, most: int) -> UInt8[Tensor, "3 u v"]:
    """The image with sides of multiples of `unit` and `least` to `most` pixels: resized twice, as upstream does.

    The second filter is torch's own on bytes, which the original's fast processor runs on; it is up to two grey levels
    away from Pillow's.

    Raises: DataError, as `smart_resize` does.
    """
    # PARITY(double_resize): through multiples of 28 first, also where the model counts in 32
    once = torch.from_numpy(first_resize(pixels)).permute(2, 0, 1)[None]
    size = smart_resize(once.shape[2], once.shape[3], unit=unit, least=least, most=most)
    if size == tuple(once.shape[2:]):
        return once[0]
    return functional.interpolate(once.contiguous(), size, mode="bicubic", antialias=True, align_corners=False)[0]


def patchify(pixels: Float[Tensor, "3 h w"], *, side: int, merge: int) -> Float[Tensor, "p c"]:
    """Patches of `side` pixels in the order that the tower merges them in: block by block of `merge` x `merge`.

    Each patch holds its three colours twice, as the first of two frames that are alike; `c` is 6 side^2.
    """
    _, height, width = pixels.shape
    rows, columns = height // side // merge, width // side // merge
    blocks = pixels.reshape(3, rows, merge, side, columns, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
    return blocks[..., None, :, :].expand(*blocks.shape[:5], FRAMES_PER_PATCH, side, side).reshape(-1, 6 * side * side)


def mrope_positions(
    attention: Int[Tensor, "b s"], places: Bool[Tensor, "b s"], rows: Int[Tensor, " v"], grids: Int[Tensor, "i 2"]
) -> Int[Tensor, "3 b s"]:
    """Positions along time, height and width. The tokens of an image share one time and lie in a grid from there.

    What follows an image stands one beyond its longer side. `places` are the visual tokens of left-padded rows, `rows`
    the features that stand there in reading order, and `grids` the rows and columns of tokens of each image that the
    features came from, one after another.

    Source: multimodal rotary positions of Qwen2-VL (arXiv 2409.12191).
    """
    flat = positions(attention)
    found = flat.expand(3, *flat.shape).clone()
    ends = grids.prod(1).cumsum(0)
    taken = 0
    for row, marked in enumerate(places):
        where = marked.nonzero()[:, 0]
        images = torch.searchsorted(ends.to(rows), rows[taken : taken + len(where)].contiguous(), right=True)
        taken, done = taken + len(where), 0
        while done < len(where):
            height, width = grids[images[done]].tolist()
            block = where[done : done + height * width]
            start = found[0, row, block[0]].clone()
            steps = torch.arange(height * width, device=flat.device)
            found[:, row, block] = start + torch.stack([torch.zeros_like(steps), steps // width, steps % width])
            found[:, row, block[-1] + 1 :] -= height * width - max(height, width)
            done += height * width
    return found
