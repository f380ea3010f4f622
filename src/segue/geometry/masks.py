"""Masks: COCO run lengths at every boundary, and the way from a decoder's logits to pixels of the original.

Run lengths count down the columns, background first, as pycocotools writes them. Masks are `Bool[h w]` where somebody
computes on them; they are coded again before they travel or are kept.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco

from segue.errors import ConfigError, DataError, LimitError
from segue.types import MaskTrack

if TYPE_CHECKING:
    from torch import Tensor
else:
    # Renderers and metrics read this file without torch; shapes are still checked on anything that has one.
    Tensor = Any

MAX_PIXELS = 1 << 27
"""Largest mask accepted from outside, in pixels (about 11,600 x 11,600): 128 MiB once decoded."""

_RUN_CHARACTERS = 7  # of 5 bits each: enough for any run that pycocotools, which counts in 32 bits, can write


def encode(mask: Bool[np.ndarray, "h w"]) -> str:
    """The mask as a COCO compressed run-length string."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def track(masks: Bool[np.ndarray, "t h w"], index: Int[np.ndarray, " t"]) -> MaskTrack:
    """One object's masks over frames whose numbers in the source are `index`; t may be 0."""
    height, width = masks.shape[1:]
    return MaskTrack((height, width), index, tuple(encode(mask) for mask in masks))


def box_of(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " 4"] | None:
    """The tight box around the mask, x0 y0 x1 y1 with right and bottom exclusive; `None` if the mask is empty."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def iou(first: Bool[np.ndarray, "h w"], second: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union of two masks of one size, in [0, 1].

    Two empty masks agree that nothing is there and score 1; an empty one against any other scores 0.
    """
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def boundary(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask's own pixels that touch, by a side, a pixel outside it: an outline one pixel wide, just inside.

    What lies beyond the edge of the frame counts as outside, so an object cut by the edge has a closed outline.
    """
    padded = np.pad(mask, 1)
    vertical = padded[:-2, 1:-1] & padded[2:, 1:-1]
    horizontal = padded[1:-1, :-2] & padded[1:-1, 2:]
    outline: np.ndarray = mask & ~(vertical & horizontal)
    return outline


def validate_rle(rle: object, *, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], str]:
    """Check a mask that came from outside before anything decodes it; its size (height, width) and compressed counts.

    `rle` must be an object {"size": [h, w], "counts": ...} as `json` reads it, its counts a compressed string or a
    list of run lengths; further keys are ignored. Nothing of the mask's size is allocated, and time is linear in the
    length of the counts. The library that decodes trusts its input, so nothing unchecked may reach it.

    Raises: DataError, if a part is missing or of the wrong type, a string is not a COCO run-length string, or the
    runs do not cover the size exactly; LimitError, if the mask has more than `max_pixels` pixels.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise DataError(
            f'a mask was given as {reprlib.repr(rle)}; expected a COCO RLE object {{"size": [h, w], "counts": ...}}'
        )
    size, counts = _checked_size(rle["size"], max_pixels), rle["counts"]
    pixels = math.prod(size)
    runs = _read_compressed(counts) if isinstance(counts, str) else _checked_runs(counts)
    impossible = next((run for run in runs if not 0 <= run <= pixels), None)
    if impossible is not None:
        raise DataError(
            f"an RLE mask of {pixels} pixels has a run of {reprlib.repr(impossible)}; its counts are damaged"
        )
    if sum(runs) != pixels:
        raise DataError(
            f"the runs of an RLE mask cover {sum(runs)} pixels, but its size {size[0]} x {size[1]} has {pixels}; "
            "check that size is [height, width] and that the counts are complete"
        )
    if isinstance(counts, str):
        return size, counts
    compressed: bytes = coco.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
    return size, compressed.decode("ascii")


def upscale(logits: Float[Tensor, "n s s"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Low-resolution mask logits brought to the original `size` (height, width), in float32; n may be 0.

    They go through the square that SAM 2 sees, four times their side: going straight to the original gives other pixels
    along the edges. A pixel belongs to the mask where its logit is above 0.

    Source: Sa2VA's inference code, which inherits both steps from SAM 2's video predictor.
    """
    from torch.nn.functional import interpolate

    # PARITY(two_step_resize): released Sa2VA never resizes masks of its answers in one step
    side = 4 * logits.shape[-1]
    square = interpolate(logits.float().unsqueeze(1), (side, side), mode="bilinear", align_corners=False)
    return interpolate(square, size, mode="bilinear", align_corners=False).squeeze(1)


def full_logits(track: MaskTrack, position: int = 0) -> Float[np.ndarray, "h w"]:
    """The mask logits at a position of the track (not a frame number) in the medium's own pixels.

    Raises: DataError, if the track was made without logits.
    """
    import torch

    if track.logits is None:
        raise DataError(
            "this track was made without its logits; ask with Options(keep_logits=True) and use that answer"
        )
    whole: Float[np.ndarray, "h w"] = upscale(torch.from_numpy(track.logits[position][None]), track.size)[0].numpy()
    return whole


def at_threshold(track: MaskTrack, threshold: float) -> MaskTrack:
    """The track with its masks drawn anew from the kept logits: a pixel is in where its probability > `threshold`.

    `threshold` lies strictly between 0 and 1; 0.5 gives the masks of the run itself. One frame is dense at a time.

    Raises: ConfigError, if the threshold is out of range; DataError, if the track was made without logits.
    """
    cut = logit(threshold)
    return replace(track, rles=tuple(encode(full_logits(track, position) > cut) for position in range(len(track))))


def logit(threshold: float) -> float:
    """The logit of a probability strictly between 0 and 1; 0.5 is 0.

    Raises: ConfigError, if it is not in that range.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"the mask threshold is {threshold}; it is a probability strictly between 0 and 1")
    return math.log(threshold / (1 - threshold))


def _checked_size(size: object, max_pixels: int) -> tuple[int, int]:
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"the size of an RLE mask is {reprlib.repr(size)}; expected [height, width], positive integers")
    height, width = size
    if height * width > max_pixels:
        raise LimitError(
            f"an RLE mask of {reprlib.repr(height)} x {reprlib.repr(width)} pixels is over the limit of {max_pixels}; "
            "send a mask of the medium's own size"
        )
    return height, width


def _checked_runs(counts: object) -> list[int]:
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        raise DataError(
            f"the counts of an RLE mask are {reprlib.repr(counts)}; expected a compressed string or a list of integers"
        )
    return counts


def _read_compressed(counts: str) -> list[int]:
    """Run lengths of a compressed string: 5 bits per character, lowest first, bit 5 set on all but a run's last.

    The value is signed, and from the fourth run on is the difference to the run two before it.
    """
    runs: list[int] = []
    value = bits = 0
    for position, character in enumerate(counts):
        code = ord(character) - ord("0")
        if not 0 <= code < 64 or bits == 5 * _RUN_CHARACTERS:
            raise DataError(
                f"the counts of an RLE mask are not a COCO run-length string: it has {character!r} at {position}; "
                "send the counts as pycocotools writes them"
            )
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = bits = 0
    if bits:
        raise DataError("the counts of an RLE mask end in the middle of a run; the string was cut short")
    return runs
