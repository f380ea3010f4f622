"""One object mended: its polygons scaled, cut to the image and rid of what is none, or its run lengths resized."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from segue.data import shapes
from segue.data.annotation_io import checked_format
from segue.errors import DataError
from segue.geometry import masks
from segue.media.image import orientation
from segue.own_data import folder
from segue.own_data.doctor.rows import Size, annotated, listed, on_annotated, outlines
from segue.own_data.folder import Row
from segue.own_data.formats.entries import Drawn
from segue.types import Media

Mask = list[list[float]] | dict[str, Any]
"""Polygons on the image, or a COCO run-length object of its size."""

_TURNS: Mapping[int, Callable[[Bool[np.ndarray, "h w"]], Bool[np.ndarray, "w h"]]] = {
    5: np.transpose,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask, 2).T,
    8: np.rot90,
}
"""What EXIF's orientations that swap the sides do to the pixels of a file."""


@dataclass(frozen=True, slots=True)
class Mended:
    """An object that can be used: its mask, which is not empty, and what was done to it."""

    mask: Mask
    done: tuple[str, ...] = ()


def mended(one: Drawn, row: Row, media: Media, drawn_on: Size | None) -> Mended:
    """An object as it should be; `drawn_on` is what its polygons were found to be drawn on, where nothing says it.

    Raises: DataError, MediaError, if nothing of it can be used.
    """
    turn = _turn(row, media)
    if one.polygons is not None and turn > 1:
        return _polygons(_turned(one, turn, media.size), media.size, media.size, f"turned as EXIF says ({turn})")
    if one.polygons is not None:
        return _polygons(one, one.drawn_on or drawn_on or on_annotated(row, media).size, media.size)
    size = on_annotated(row, media).size
    try:
        with checked_format("its mask"):
            counts = one.counts()
    except shapes.OtherSizeError as error:
        if error.found is None:
            raise
        size, counts = error.found, _again(one, row, media, error.found)
    if shapes.is_empty(counts, size):
        raise shapes.EmptyMaskError("its mask is empty")
    if size == media.size:
        return Mended({"size": list(size), "counts": counts})
    if turn > 1 and size == media.size[::-1]:
        turned = masks.encode(_TURNS[turn](shapes.track([counts], [0], size).dense(0)))
        return Mended({"size": list(media.size), "counts": turned}, (f"turned as EXIF says ({turn})",))
    resized = masks.encode(_resized(shapes.track([counts], [0], size).dense(0), media.size))
    if shapes.is_empty(resized, media.size):
        raise shapes.EmptyMaskError(f"its mask is empty when scaled to {media.size[1]}x{media.size[0]}")
    return Mended({"size": list(media.size), "counts": resized}, (_scaled(size, media.size),))


def clipped(points: Float[np.ndarray, "n 2"], size: Size) -> Float[np.ndarray, "m 2"]:
    """The part of a polygon that lies in an image of (height, width); no points, if there is none.

    Source: Sutherland and Hodgman 1974: the polygon is cut along one side of the image after the other.
    """
    kept = [(float(x), float(y)) for x, y in points]
    for axis, limit, sign in ((0, 0.0, 1), (0, float(size[1]), -1), (1, 0.0, 1), (1, float(size[0]), -1)):
        kept = list(_cut(kept, axis, limit, sign=sign))
    return np.asarray(kept, np.float64).reshape(-1, 2)


def united(several: Sequence[Mask], size: Size) -> Mask:
    """Masks of one object as one: all polygons together, or the union as run lengths."""
    if all(isinstance(mask, list) for mask in several):
        return [polygon for mask in several if isinstance(mask, list) for polygon in mask]
    if len(several) == 1:
        return several[0]
    counts = [mask["counts"] if isinstance(mask, dict) else shapes.polygons_mask(mask, size) for mask in several]
    return {"size": list(size), "counts": shapes.united(counts, size)}


def _turn(row: Row, media: Media) -> int:
    """The EXIF orientation of an image whose row was drawn on it before it was turned, else 1."""
    is_before = row.entry.size == media.size[::-1] and not folder.is_turned(row, media)
    return orientation(media.source) if is_before and isinstance(media.source, Path) and media.kind == "image" else 1


def _turned(one: Drawn, turn: int, size: Size) -> Drawn:
    """An object drawn on an image as its file holds it, brought to the image of (height, width) as EXIF turns it."""
    height, width = size if turn < 5 else size[::-1]
    polygons = []
    for points in outlines(one):
        x, y = points[:, 0], points[:, 1]
        shown = {
            2: (width - x, y),
            3: (width - x, height - y),
            4: (x, height - y),
            5: (y, x),
            6: (height - y, x),
            7: (height - y, width - x),
            8: (y, width - x),
        }[turn]
        polygons.append(np.stack(shown, axis=1).ravel().tolist())
    return replace(one, polygons=polygons)


def _polygons(one: Drawn, drawn_on: Size, size: Size, *already: str) -> Mended:
    across, down = size[1] / drawn_on[1], size[0] / drawn_on[0]
    if abs(drawn_on[0] * across - size[0]) > 1 and abs(drawn_on[1] * down - size[1]) > 1:
        raise DataError(f"it was drawn on {drawn_on[1]}x{drawn_on[0]}, of another shape than {size[1]}x{size[0]}")
    done = [*already] if drawn_on == size else [*already, _scaled(drawn_on, size)]
    whole = list(outlines(one))
    written = len(one.polygons) if isinstance(one.polygons, list) else 1
    if len(whole) < written:
        done.append(f"dropped {written - len(whole)} of {written} polygons: too few points, or no finite numbers")
    kept: list[list[float]] = []
    outside = 0
    for points in whole:
        scaled = points if drawn_on == size else points * (across, down)
        inside = clipped(scaled, size)
        is_out = bool((scaled < -shapes.TOLERANCE).any() or (scaled > np.add(size[::-1], shapes.TOLERANCE)).any())
        outside += is_out
        if len(inside) >= 3:
            kept.append((inside.round(3) if is_out or drawn_on != size else scaled).ravel().tolist())
    if outside:
        done.append(f"cut {outside} of {written} polygons to the image")
    if not kept:
        raise DataError("; ".join([*done, "no polygon is left"]))
    shapes.polygons_mask(kept, size)
    return Mended(kept, tuple(done))


def _cut(points: Sequence[tuple[float, float]], axis: int, limit: float, *, sign: int) -> Iterator[tuple[float, float]]:
    """What of a polygon lies on one side of a line along an axis."""
    for before, here in zip([*points[-1:], *points[:-1]], points, strict=True):
        was_in, is_in = sign * (before[axis] - limit) >= 0, sign * (here[axis] - limit) >= 0
        if was_in != is_in:
            share = (limit - before[axis]) / (here[axis] - before[axis])
            other = before[1 - axis] + share * (here[1 - axis] - before[1 - axis])
            yield (limit, other) if axis == 0 else (other, limit)
        if is_in:
            yield here


def _again(one: Drawn, row: Row, media: Media, size: Size) -> str:
    """The run lengths of an object on a medium of its own size.

    Raises: SegueError, if they cannot be had so either.
    """
    if abs(size[0] * media.size[1] - size[1] * media.size[0]) > max(*size, *media.size):
        raise DataError(f"its mask is {size[1]}x{size[0]}, of another shape than {media.size[1]}x{media.size[0]}")
    drawn, fault = listed(row, Media(media.source, media.kind, size, media.count), annotated(row))
    same = next((other for other in drawn if other.number == one.number), None)
    if same is None:
        raise fault or DataError("its mask is of another size")
    with checked_format("its mask"):
        return same.counts()


def _resized(mask: Bool[np.ndarray, "h w"], size: Size) -> Bool[np.ndarray, "H W"]:
    picture = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    resized: np.ndarray = np.asarray(picture).astype(bool)
    return resized


def _scaled(found: Size, size: Size) -> str:
    factor = size[1] / found[1]
    rounded = f"{factor:.4g}" if math.isclose(factor, size[0] / found[0], rel_tol=0.01) else "two factors"
    return f"scaled from {found[1]}x{found[0]} to {size[1]}x{size[0]} by {rounded}"
