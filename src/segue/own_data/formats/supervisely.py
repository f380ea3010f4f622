"""Supervisely: data sets with `ann/a.jpg.json` for each `img/a.jpg`, in a project, in another's `datasets/` or alone.

    {"size": {"height": 40, "width": 60}, "tags": [{"name": "train"}], "objects": [{"classTitle": "vessel",
     "geometryType": "polygon", "points": {"exterior": [[x, y], ...], "interior": [[[x, y], ...]]}}]}

What an object is called is its class. Polygons, their holes left out, and bitmaps are read; other shapes are no masks:
they are counted and left out, and so are images without a mask. A tag of an image that names a split says its split.

Source: Supervisely's documentation of its annotation format.
"""

from __future__ import annotations

import base64
import logging
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from segue.data import shapes
from segue.data.annotation_io import checked_format, field, read_annotations, size_of
from segue.errors import DataError, SegueError
from segue.geometry import masks
from segue.media import open_media, read_image
from segue.media.image import stored
from segue.own_data.formats.entries import Entry, Remark, split_named
from segue.own_data.formats.labelme import placed
from segue.own_data.formats.marked import Shape, Size, files_below, objects, things

log = logging.getLogger(__name__)

__all__ = ["FOLDER", "MEDIA", "NAME", "entries", "objects", "recognises", "things"]

NAME, FOLDER, MEDIA = "Supervisely", "", ""
_WAYS = ("*/ann", "datasets/*/ann", "*/datasets/*/ann", "*/datasets/*/datasets/*/ann")
_MOST = 100_000_000
"""Bytes of a bitmap's picture, unpacked."""


def recognises(base: Path) -> bool:
    """Whether a folder is laid out like this."""
    return any((place.parent / "img").is_dir() for place in _places(base))


def entries(base: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per image with a polygon or bitmap; a file that cannot be read is refused alone."""
    found, others, total = [], 0, 0
    places = _places(base)
    near = base if len(places) > 1 else places[0].parent  # one data set alone is no group of its images
    for path in (path for place in places for path in files_below(place, ".json")):
        name = (path.parent.parent / "img" / path.stem).relative_to(near).as_posix()
        try:
            content = read_annotations(path)
            with checked_format(path.name):
                marked = field(content, "objects", list, path.name)
                drawn = [one for one in marked if one["geometryType"] in ("polygon", "bitmap")]
                others += len(marked) - len(drawn)
                size = size_of(content["size"]["height"], content["size"]["width"])
                tags = [split_named(str(tag["name"])) for tag in content.get("tags", [])]
                record = [_shape(one) for one in drawn]
        except DataError as error:
            remarks.append(Remark("refused", str(path.relative_to(base)), str(error)))
            continue
        total += 1
        if record:
            found.append(Entry((name,), record, size, split=next(filter(None, tags), "")))
        else:
            remarks.append(Remark("left_out", str(path.relative_to(base)), f"{name} has no mask"))
    if others or len(found) < total:
        log.warning(
            "%s: %d other shapes are no masks, and %d of %d images have none; they are left out",
            base,
            others,
            total - len(found),
            total,
        )
    return found


def _places(base: Path) -> list[Path]:
    """The folders of annotations: of one data set, of a project's, and of those that lie in others' `datasets/`."""
    found = [base / "ann", *(place for way in _WAYS for place in sorted(base.glob(way)))]
    return [place for place in found if place.is_dir()]


def _shape(one: dict[str, Any]) -> Shape:
    if one["geometryType"] == "bitmap":
        return Shape(one["classTitle"], pixels=partial(_bitmap, one["bitmap"]["data"], one["bitmap"]["origin"]))
    exterior, *holes = [
        [number for point in line for number in point]
        for line in (one["points"]["exterior"], *one["points"].get("interior", []))
    ]
    if holes:
        return Shape(one["classTitle"], pixels=partial(_holed, exterior, holes))
    return Shape(one["classTitle"], [exterior])


def _holed(exterior: list[Any], holes: list[list[Any]], size: Size) -> str:
    whole = shapes.polygons_mask([exterior], size)
    try:
        cut = shapes.polygons_mask(holes, size)
    except shapes.EmptyMaskError:  # holes smaller than a pixel
        return whole
    pixels, inside = (shapes.track([counts], [0], size).dense(0) for counts in (whole, cut))
    return masks.encode(pixels & ~inside)


def _bitmap(data: str, origin: list[Any], size: Size) -> str:
    """A PNG, packed with zlib and in base64, whose upper left corner lies at `origin`; its opacity, if it has one.

    Raises: DataError.
    """
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(data, validate=True), _MOST)
        values = stored(unpacked).values
        has_opacity = values.ndim == 3 and values.shape[2] in (2, 4)
        picture = values[..., -1:] if has_opacity else read_image(open_media(unpacked))
    except (ValueError, zlib.error, SegueError) as error:
        raise DataError(f"a bitmap cannot be read: {error}; export it again") from error
    return placed(picture.max(axis=2) > 0, origin, size)
