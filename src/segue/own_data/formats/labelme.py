"""LabelMe: a JSON file for each image, beside it or in a folder of its own.

    {"imagePath": "a.jpg", "imageHeight": 40, "imageWidth": 60,
     "shapes": [{"label": "vessel", "description": "", "shape_type": "polygon", "points": [[x, y], ...]}]}

What a shape is called is its description, if it has one, else its label. Polygons and masks are read; boxes, circles,
lines and points are no masks: they are counted and left out, and so are images without a mask.

Source: the files that LabelMe 5 writes.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import checked_format, field, read_annotations, size_of
from segue.errors import DataError, MediaError, SegueError
from segue.geometry import masks
from segue.media import open_media, read_image
from segue.own_data.finding import locate
from segue.own_data.formats.entries import Entry, Remark
from segue.own_data.formats.marked import Shape, Size, files_below, objects, things

log = logging.getLogger(__name__)

__all__ = ["FOLDER", "MEDIA", "NAME", "entries", "objects", "placed", "recognises", "things"]

NAME, FOLDER, MEDIA = "LabelMe", "", ""
_TRIED = 3
"""Files looked into to tell whether they are LabelMe's."""


def recognises(base: Path) -> bool:
    """Whether the first JSON files below a folder are of this form."""
    return any(map(_is_one, islice(files_below(base, ".json"), _TRIED)))


def entries(base: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per image with a polygon or mask; a file that cannot be read is refused alone."""
    found, others, total = [], 0, 0
    for path in files_below(base, ".json"):
        place = str(path.relative_to(base))
        try:
            content = read_annotations(path)
            if not _is_content(content):
                continue
            with checked_format(path.name):
                drawn = [one for one in content["shapes"] if one.get("shape_type", "polygon") in ("polygon", "mask")]
                others += len(content["shapes"]) - len(drawn)
                name = str(content["imagePath"] or path.stem).replace("\\", "/")
                record = [_shape(one, path.name) for one in drawn]
                size = size_of(content.get("imageHeight"), content.get("imageWidth"))
        except DataError as error:
            remarks.append(Remark("refused", place, str(error)))
            continue
        total += 1
        if record:
            here = path.parent.relative_to(base)
            names = ((here / name).as_posix(), name, (here / path.stem).as_posix())
            if content.get("imageData") and not _is_there(base, names):
                told = f"its picture lies in its imageData alone; save it beside it as {path.stem}.png"
                remarks.append(Remark("refused", place, told))
            found.append(Entry(names, record, size))
        else:
            remarks.append(Remark("left_out", place, f"{name} has no mask"))
    if others or len(found) < total:
        log.warning(
            "%s: %d boxes, lines or points are no masks, and %d of %d images have none; they are left out",
            base,
            others,
            total - len(found),
            total,
        )
    return found


def _is_there(base: Path, names: Sequence[str]) -> bool:
    try:
        return locate([base], *names).is_file()
    except MediaError:
        return False


def _is_one(path: Path) -> bool:
    try:
        return _is_content(read_annotations(path))
    except DataError:
        return False


def _is_content(content: Any) -> bool:
    return isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys()


def _shape(shape: dict[str, Any], where: str) -> Shape:
    text = shape.get("description") or shape["label"]
    if shape.get("shape_type") == "mask":
        return Shape(text, pixels=partial(_pixels, field(shape, "mask", str, f"{where}: a mask"), shape["points"][0]))
    return Shape(text, [[number for point in shape["points"] for number in point]])


def _pixels(data: str, corner: list[Any], size: Size) -> str:
    """A mask picture in base64 whose upper left corner lies at a point.

    Raises: DataError.
    """
    try:
        picture = read_image(open_media(base64.b64decode(data, validate=True)))[..., 0] > 0
    except (binascii.Error, SegueError) as error:
        raise DataError(f"the picture of a mask cannot be read: {error}") from error
    return placed(picture, corner, size)


def placed(picture: np.ndarray, corner: list[Any], size: Size) -> str:
    """A mask of an image's size with a smaller one at a point (x, y).

    Raises: DataError, if it does not lie in the image.
    """
    left, top = (round(number) for number in corner)
    height, width = picture.shape
    if min(left, top) < 0 or left + width > size[1] or top + height > size[0]:
        raise DataError(f"a mask of {width}x{height} at {left}, {top} leaves its image of {size[1]}x{size[0]}")
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = picture
    return masks.encode(mask)
