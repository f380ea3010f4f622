"""Shapes of annotation files (polygons, run lengths, pictures) as masks of a medium.

Masks are COCO run-length strings (`segue.geometry.masks`). What belongs to one object is united: a pixel that two of
its polygons cover is in its mask once. Sizes are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pycocotools import mask as coco

from segue.errors import DataError
from segue.geometry import masks
from segue.geometry.boxes import from_xywh
from segue.media.image import stored
from segue.types import MaskTrack, Region

Size = tuple[int, int]


class TooFewPointsError(DataError):
    """A polygon has fewer than three points, or half a point."""


class BadCoordinateError(DataError):
    """A polygon has a coordinate that is no finite number."""


class OutsideImageError(DataError):
    """A polygon leaves its image by more than `TOLERANCE`."""


class EmptyMaskError(DataError):
    """A mask has no pixel where it must have one."""


class OtherSizeError(DataError):
    """A mask is of another size than its image; `found` is its own (height, width)."""

    found: Size | None = None


_SMEARED, _CLEAR, _NOISE = 0.3, 0.9, 10
"""Of a mask saved as JPEG: how far from its two values pixels may lie, the share that does not lie in between, and the
brightest value that is nothing but the noise of a black picture."""
_MOST_POINTS = 1_000_000
_MOST_POLYGONS = 100_000
"""Corners of one object's polygons and how many they may be: more is no drawing."""
TOLERANCE = 1.0
"""Pixels by which a polygon may leave its image; annotation tools round outwards. What is beyond is cut off."""


def check_amount(polygons: Sequence[Any]) -> None:
    """Refuse more polygons, or points in them, than anybody draws.

    Raises: DataError.
    """
    if len(polygons) > _MOST_POLYGONS or sum(len(one) for one in polygons if isinstance(one, list)) > 2 * _MOST_POINTS:
        raise DataError(
            f"an object has {len(polygons):,} polygons or more than {_MOST_POINTS:,} points in them; "
            "give a mask picture or run lengths instead"
        )


def polygons_mask(polygons: Sequence[Any], size: Size, *, drawn_on: Size | None = None) -> str:
    """The union of polygons, each a flat list x0 y0 x1 y1 ... in pixels, as a mask of `size`.

    `drawn_on` is the size of the image that they were drawn on, where that is another: they are scaled.

    Raises: DataError, for a polygon of fewer than three points, with an odd count or a coordinate that is no number,
        or that leaves its image; for polygons that cover no pixel; and if the two sizes are of another shape.
    """
    if math.prod(size) > masks.MAX_PIXELS:
        raise DataError(
            f"a mask of {size[1]}x{size[0]} pixels is over the limit of {masks.MAX_PIXELS:,}; state the true size"
        )
    across, down = _scale(drawn_on or size, size)
    check_amount(polygons)
    outlines = [_outline(polygon, size, across=across, down=down) for polygon in polygons]
    if not outlines:
        raise DataError("an object has no polygon; give at least one, or take the object out")
    counts = united([_counts(rle) for rle in coco.frPyObjects(outlines, *size)], size)
    if is_empty(counts, size):
        raise EmptyMaskError(
            f"{len(outlines)} polygons of an object cover no pixel; draw them again or take the object out"
        )
    return counts


def rle_mask(rle: Any, size: Size) -> str:
    """A COCO run-length object, its counts compressed (text or bytes) or a list, as a mask of `size`.

    Raises: DataError, if it is damaged or of another size; LimitError, if it is too large.
    """
    if isinstance(rle, Mapping) and isinstance(rle.get("counts"), bytes):
        rle = {**rle, "counts": rle["counts"].decode("ascii", "replace")}
    if isinstance(rle, Mapping) and isinstance(rle.get("size"), tuple):
        rle = {**rle, "size": list(rle["size"])}
    stated, counts = masks.validate_rle(rle)
    if stated != size:
        raise _other_size(stated, f"a mask is {stated[1]}x{stated[0]} pixels on an image of {size[1]}x{size[0]}")
    return counts


def segmentation_mask(segmentation: Any, size: Size) -> str:
    """COCO's `segmentation`, polygons or a run-length object, as a mask of `size`.

    Raises: DataError, as `polygons_mask` and `rle_mask` do, and if it covers no pixel or is not there.
    """
    if not segmentation:
        raise EmptyMaskError("it has no segmentation; a box is no mask: outline the object, or take it out")
    if isinstance(segmentation, list):
        return polygons_mask(segmentation, size)
    counts = rle_mask(segmentation, size)
    if is_empty(counts, size):
        raise EmptyMaskError("the mask of an object is empty; take the object out, or mark it")
    return counts


def rows_mask(runs: Sequence[int], box: tuple[int, int, int, int], size: Size) -> str:
    """Run lengths that go along the rows of a box (left, top, width, height), background first, as a mask of `size`.

    Raises: DataError, if the runs do not fill the box, or it does not lie in the image.
    """
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[1] or top + height > size[0]:
        raise DataError(f"a mask lies at {box} (left, top, width, height), outside its image of {size[1]}x{size[0]}")
    if any(run < 0 for run in runs) or sum(runs) != width * height:
        raise DataError(f"the runs of a mask cover {sum(runs)} pixels where its box {box} has {width * height}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return masks.encode(mask)


def read_values(path: Path, size: Size, *, is_one_thing: bool = False) -> Int[np.ndarray, "h w"]:
    """The values of a mask picture as they are stored: grey levels, or places in the palette; turned as EXIF says.

    Grey may be kept as colours, and with transparency: what cannot be seen is 0, and where the grey says nothing the
    opacity is the mask. One colour beside black is 255. JPEG smears values, so of one all that is above half its
    brightest is one thing. With `is_one_thing` no value has a name, so of a picture whose palette shows black and white
    alone, black is 0 and white 255, wherever they stand in the palette.

    Raises: MediaError, if it cannot be read; DataError, if it is of another size than its image, has colours, holds
        several pictures, or is a JPEG of more than two values.
    """
    picture = stored(path)
    own = (picture.values.shape[0], picture.values.shape[1])
    if picture.pictures > 1:
        raise DataError(
            f"the mask {path.name} holds {picture.pictures} pictures where one was expected; save one alone"
        )
    if own != size:
        raise _other_size(
            own,
            f"the mask {path.name} is {own[1]}x{own[0]} pixels, its image {size[1]}x{size[0]}; export it at the "
            f"image's size{', turned as EXIF turns the image' if own == size[::-1] else ''}",
        )
    if is_one_thing and picture.palette is not None:
        grey: np.ndarray | None = _black_and_white(picture.values, picture.palette)
    else:
        grey = _grey(picture.values)
    if grey is not None and grey.dtype.kind == "f" and bool((np.isfinite(grey) & (grey == np.trunc(grey))).all()):
        grey = grey.astype(np.int64)
    if grey is not None and grey.dtype.kind == "f":
        raise DataError(
            f"the mask {path.name} has values between whole numbers; save it with whole ones, 0 for nothing"
        )
    if grey is None or grey.dtype.kind not in "bui":
        raise DataError(
            f"the mask {path.name} is a picture of several colours; save it in grey (0 for nothing, another value for "
            "each object) or with a palette, or name its colours in labelmap.txt, in the form of Pascal VOC"
        )
    return _two_values(grey, path) if picture.is_lossy else grey.astype(np.int64)


def _black_and_white(places: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Places in a palette as 0 and 255 where those that are used show black and white alone, else as they are.

    Pillow's quantize() and its GIFs often put white first. One colour alone says which is nothing only if white is.
    """
    used = np.unique(places)
    if used[-1] >= len(palette):
        return places
    is_black, is_white = ((palette[used] == level).all(axis=1) for level in (0, 255))
    is_plain = bool((is_black | is_white).all()) and max(is_black.sum(), is_white.sum()) == 1
    if not is_plain or (len(used) == 1 and (palette[0] != 255).any()):
        return places
    return np.where(np.isin(places, used[is_white]), np.uint8(255), np.uint8(0))


def _grey(values: np.ndarray) -> Shaped[np.ndarray, "h w"] | None:
    """The grey of a picture that may be kept in colours, with transparency; None where it has several colours."""
    if values.ndim == 2:
        return values
    channels = values.shape[2]
    colours, opacity = (values[..., :-1], values[..., -1]) if channels in (2, 4) else (values, None)
    if (colours != colours[..., :1]).any():
        painted = colours.any(axis=2) if opacity is None else colours.any(axis=2) & (opacity > 0)
        is_one = bool((colours[painted] == colours[painted][:1]).all())
        return np.where(painted, np.uint8(255), np.uint8(0)) if is_one else None
    grey = colours[..., 0]
    if opacity is None:
        return grey
    is_plain = bool((grey == grey[0, 0]).all()) and bool((opacity != opacity[0, 0]).any())
    return np.where(opacity > 0, opacity if is_plain else grey, 0)


def _two_values(grey: Shaped[np.ndarray, "h w"], path: Path) -> Int[np.ndarray, "h w"]:
    """A mask that JPEG has smeared, as 0 and 255."""
    most = int(grey.max())
    near = (grey < most * _SMEARED) | (grey > most * (1 - _SMEARED))
    if most and near.mean() < _CLEAR:
        raise DataError(
            f"the mask {path.name} is a JPEG with more than two values, which that format smears; save it as PNG"
        )
    return np.where(grey.astype(np.int64) * 2 > most, 255, 0) if most > _NOISE else np.zeros(grey.shape, np.int64)


def united(counts: Iterable[str], size: Size) -> str:
    """The union of masks of one size; an empty mask if there are none."""
    given = list(counts)
    if len(given) == 1:
        return given[0]
    if not given:
        return empty(size)
    return _counts(coco.merge([_object(one, size) for one in given], intersect=False))


def empty(size: Size) -> str:
    """The mask of no pixel."""
    return _counts(coco.frPyObjects({"size": list(size), "counts": [math.prod(size)]}, *size))


def is_empty(counts: str, size: Size) -> bool:
    """Whether a mask has no pixel."""
    return not coco.area(_object(counts, size))


def track(counts: Sequence[str], frames: Sequence[int], size: Size) -> MaskTrack:
    """An object's masks at these frame numbers."""
    return MaskTrack(size, np.asarray(frames, dtype=np.int64), tuple(counts))


def region(phrase: str, masks: MaskTrack, span: tuple[int, int] | None = None) -> Region:
    """A region with the tight box of the first frame in which it is seen; none is seen, no box."""
    for position in range(len(masks)):
        rle = _object(masks.rles[position], masks.size)
        if coco.area(rle):
            box = from_xywh(np.asarray(coco.toBbox(rle), dtype=np.float64))
            return Region(phrase=phrase, span=span, box=box, masks=masks)
    return Region(phrase=phrase, span=span, masks=masks)


def _scale(drawn_on: Size, size: Size) -> tuple[float, float]:
    """Factors across and down from one size to another of the same shape, to within a pixel."""
    down, across = size[0] / drawn_on[0], size[1] / drawn_on[1]
    if abs(drawn_on[0] * across - size[0]) > 1 and abs(drawn_on[1] * down - size[1]) > 1:
        raise DataError(
            f"the polygons were drawn on {drawn_on[1]}x{drawn_on[0]} pixels and the image is {size[1]}x{size[0]}, of "
            "another shape, so they cannot be scaled; state the size they were drawn on, or draw them again"
        )
    return across, down


def check_numbers(polygon: Sequence[Any]) -> None:
    """Refuse coordinates that are no finite numbers.

    Raises: BadCoordinateError.
    """
    if not all(_is_number(number) for number in polygon):
        raise BadCoordinateError(f"a polygon has a coordinate that is no number: {str(polygon)[:60]}")


def _outline(polygon: Any, size: Size, *, across: float, down: float) -> list[float]:
    """A polygon in pixels of the medium, checked."""
    if not isinstance(polygon, list) or any(isinstance(number, list | tuple) for number in polygon):
        raise DataError(f"a polygon is {str(polygon)[:60]}; expected a flat list x0, y0, x1, y1, ...")
    check_numbers(polygon)
    if len(polygon) < 6 or len(polygon) % 2:
        raise TooFewPointsError(
            f"a polygon has {len(polygon)} numbers; expected an even count of 6 or more, for at least three points"
        )
    if min(size) > 2 and all(0 <= number <= 1 for number in polygon) and any(number % 1 for number in polygon):
        raise BadCoordinateError(
            f"a polygon has coordinates from 0 to 1, shares of the image's sides: {str(polygon)[:60]}; multiply x by "
            f"its width {size[1]} and y by its height {size[0]}"
        )
    points = np.asarray(polygon, np.float64).reshape(-1, 2) * (across, down)
    limit = np.array([size[1], size[0]], np.float64)
    if (points < -TOLERANCE).any() or (points > limit + TOLERANCE).any():
        low, high = points.min(axis=0).round(1).tolist(), points.max(axis=0).round(1).tolist()
        raise OutsideImageError(
            f"a polygon reaches from {low} to {high} (x, y), outside its image of {size[1]}x{size[0]} pixels; if it "
            "was drawn on an image of another size, state that size"
        )
    clipped: list[float] = np.clip(points, 0, limit).ravel().tolist()
    return clipped


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; of whole ones, no larger than pixels are counted."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53


def _other_size(found: Size, text: str) -> OtherSizeError:
    error = OtherSizeError(text)
    error.found = found
    return error


def _object(counts: str, size: Size) -> dict[str, Any]:
    return {"size": list(size), "counts": counts.encode("ascii")}


def _counts(rle: Mapping[str, Any]) -> str:
    counts: bytes = rle["counts"]
    return counts.decode("ascii")


def value_mask(values: Int[np.ndarray, "h w"], chosen: Iterable[int] | None) -> str:
    """The pixels of a mask picture that have one of the values, or with None any value but 0."""
    mask: Bool[np.ndarray, "h w"] = values != 0 if chosen is None else np.isin(values, list(chosen))
    return masks.encode(mask)
