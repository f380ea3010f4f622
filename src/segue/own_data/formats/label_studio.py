"""Label Studio's JSON export: polygons and brush strokes on images.

A task's first annotation that was not cancelled and marks something counts; where others differ, that is said. What a
shape is called is the text written for it, if there is one (a `textarea` of the same id), else its label; one with
several of these is each of them. Shapes of one name are one thing. Other kinds of shapes are no masks: they are counted
and left out, and so are images without a mask. Of a task with several images, a shape lies on the one whose field its
`to_name` names, and of a list of images on that of its `item_index`. An image is looked for by the path that the task
names, by that path's last part, and by that without the eight characters that uploading puts before it.

Source: Label Studio's documentation of its export format; the layout of brush strokes as its converter reads it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
from jaxtyping import Bool

from segue.data import shapes
from segue.data.annotation_io import field, size_of
from segue.errors import DataError
from segue.geometry import masks
from segue.own_data.finding import UPLOADED
from segue.own_data.formats.entries import Drawn, Entry, Remark, Thing, merged, read_masks
from segue.types import Media

log = logging.getLogger(__name__)

NAME = "Label Studio"

KINDS = ("polygonlabels", "polygon", "brushlabels", "brush")
_PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif|avif|hei[cf]|dcm)$", re.IGNORECASE)


def recognises(content: Any) -> bool:
    """Whether what a JSON file holds is of this form."""
    return (
        isinstance(content, list)
        and bool(content)
        and isinstance(content[0], dict)
        and {"data", "annotations"} <= content[0].keys()
    )


def entries(content: Any, path: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per task that has a mask; of a task of several images, one for each with a mask.

    Raises: DataError, if a task names no image, or its shapes state no size.
    """
    found, others, bare = [], 0, 0
    for number, task in enumerate(content):
        where = f"{path.name}, task {number}"
        done = [one for one in field(task, "annotations", list, where) if not one.get("was_cancelled")]
        several = [field(one, "result", list, where) for one in done]
        results = next((one for one in several if any(result.get("type") in KINDS for result in one)), None)
        results = several[0] if results is None and several else results or []
        if len({_marked(one) for one in several}) > 1:
            about = str(task.get("data"))[:80]
            text = f"{len(several)} annotations of {about} differ; the first that marks something is taken"
            remarks.append(Remark("disagreement", where, text))
        drawn = [result for result in results if result.get("type") in KINDS]
        # a text or choice about a shape has that shape's id
        placed = {one.get("id", place) for place, one in enumerate(results) if "original_width" in one}
        others += len(placed - {one.get("id", place) for place, one in enumerate(results) if one in drawn})
        if drawn:
            texts = {one["id"]: one["value"].get("labels") for one in results if one.get("type") == "labels"}
            texts |= {result["id"]: result["value"]["text"] for result in results if result.get("type") == "textarea"}
            for names, here in _by_image(drawn, field(task, "data", dict, where), where, remarks):
                sides = (field(here[0], f"original_{side}", int | float, where) for side in ("height", "width"))
                record = [(name, result) for result in here for name in _called(result, texts)]
                found.append(Entry(names, record, size_of(*sides)))
        else:
            bare += 1
            remarks.append(Remark("left_out", where, f"the task of {str(task.get('data'))[:80]} has no mask"))
    if others or bare:
        log.warning(
            "%s: %d shapes are no masks, and %d of %d tasks have none; they are left out",
            path,
            others,
            bare,
            len(content),
        )
    return found


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The things of an image.

    Raises: DataError, if a shape is wrong or empty, or the image was turned.
    """
    return merged(read_masks(objects(entry, media, frames)), media, frames)


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The objects of an image."""
    for number, (name, result) in enumerate(entry.record):
        counts = partial(_mask, result, media.size)
        yield Drawn(number, f"shape {number} ({name!r})", name, 0, counts, _outlines(result, media.size))


def decode_brush(data: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels that a brush stroke made opaque.

    A stream of bits holds the number of values (32 bits), the bits per value less 1 (5), four lengths less 1 (4 bits
    each), and then stretches: a bit that says whether one value is repeated, two that choose one of the four lengths,
    so many bits with the number of values less 1, and the value or the values. Values are red, green, blue and opacity
    of each pixel, row by row.

    Raises: DataError, if the stream breaks off or is of another size.
    """
    bits = _Bits(bytes(data))
    count, width = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    if count != size[0] * size[1] * 4:
        raise DataError(f"a brush stroke has {count} values; an image of {size[1]}x{size[0]} needs 4 per pixel")
    values = np.zeros(count, np.uint8 if width <= 8 else np.uint32)
    done = 0
    while done < count:
        is_run = bits.read(1)
        stop = done + bits.read(lengths[bits.read(2)]) + 1
        if stop > count:
            raise DataError("a brush stroke goes on beyond its image; export it again")
        values[done:stop] = bits.read(width) if is_run else [bits.read(width) for _ in range(stop - done)]
        done = stop
    opaque: Bool[np.ndarray, "h w"] = values.reshape(*size, 4)[..., 3].astype(np.int64) > 0
    return opaque


class _Bits:
    """A stream of bits, the highest of a byte first."""

    def __init__(self, data: bytes):
        self._digits = "".join(f"{byte:08b}" for byte in data)
        self._position = 0

    def read(self, count: int) -> int:
        digits = self._digits[self._position : self._position + count]
        if len(digits) < count:
            raise DataError("a brush stroke breaks off; export it again")
        self._position += count
        return int(digits, 2)


def _brush(value: Mapping[str, Any], size: tuple[int, int]) -> str:
    data = field(value, "rle", list, "it")
    if not all(isinstance(byte, int) and 0 <= byte < 256 for byte in data):
        raise DataError("a brush stroke holds more than bytes; export it again")
    mask = decode_brush(data, size)
    if not mask.any():
        raise shapes.EmptyMaskError("a brush stroke is empty; take it out or draw it")
    return masks.encode(mask)


def _mask(result: Mapping[str, Any], size: tuple[int, int]) -> str:
    if result.get("image_rotation"):
        raise DataError("it was drawn on the image turned around; turn the image file, or draw it upright")
    value = field(result, "value", dict, "it")
    if "points" not in value:
        return _brush(value, size)
    outlines = _outlines(result, size)
    if outlines is None:
        raise DataError("its points are no list of [x, y] in percent")
    return shapes.polygons_mask(outlines, size)


def _outlines(result: Mapping[str, Any], size: tuple[int, int]) -> list[list[float]] | None:
    """The one polygon of a result, which states it in percent of the image's width and height; None without one."""
    value = result.get("value")
    points = value.get("points") if isinstance(value, dict) and not result.get("image_rotation") else None
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        return None
    return [[x * side / 100 for point in points for x, side in zip(point, (size[1], size[0]), strict=True)]]


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(isinstance(number, int | float) for number in point)


def _called(result: Mapping[str, Any], texts: Mapping[str, Any]) -> list[str]:
    """What a shape is called: each text written for it, or each of its labels."""
    words = texts.get(result.get("id", ""))
    if not words:
        value = field(result, "value", dict, "a shape")
        words = next((value[kind] for kind in KINDS if value.get(kind)), None) or value.get("labels") or [""]
    return [str(word) for word in (words if isinstance(words, list) else [words])]


def _marked(results: Sequence[Mapping[str, Any]]) -> str:
    """What an annotation says, whoever made it: its shapes and their labels, in any order."""
    shown = [result.get("value") for result in results if result.get("type") in KINDS]
    return json.dumps(sorted(json.dumps(value, sort_keys=True) for value in shown))


def _by_image(
    drawn: Sequence[Mapping[str, Any]], data: Mapping[str, Any], where: str, remarks: list[Remark]
) -> Iterator[tuple[tuple[str, ...], list[Mapping[str, Any]]]]:
    """The images of a task by what they may be called, each with the shapes on it.

    `to_name` is what an image is called in the project's labelling page, where it usually has the name of its field. If
    it names no field, one image of several cannot be told: the first is taken, unless shapes speak of several. A list
    of images has one place for each, as `images[0]`.
    """
    images = _images(data, where)
    spoken = {_spoken_of(result, images) for result in drawn}
    first = next(iter(images))
    if len(images) > 1 and not spoken <= images.keys():
        told = f"its shapes lie on {', '.join(sorted(spoken))}, and its images are {', '.join(images)}"
        if len(spoken) > 1:
            remarks.append(Remark("refused", where, f"{where}: {told}; give images in the labelling page these names"))
            return
        remarks.append(Remark("unsure_mask", where, f"{told}; they are taken for shapes on {first}"))
    on: dict[str, list[Mapping[str, Any]]] = {}
    for result in drawn:
        on.setdefault(name if (name := _spoken_of(result, images)) in images else first, []).append(result)
    yield from ((images[field_name], here) for field_name, here in on.items())


def _spoken_of(result: Mapping[str, Any], images: Collection[str]) -> str:
    """The image that a shape says it lies on; in a list it is the one at `item_index`, whatever the list is called."""
    name, place = str(result.get("to_name")), result.get("item_index")
    if place is None or name in images:
        return name
    of_place = [image for image in images if image.endswith(f"[{place}]")]
    named = f"{name}[{place}]"
    return of_place[0] if len(of_place) == 1 and named not in images else named


def _images(data: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """The fields of a task that name an image, or the places in a list of them, and what its file may be called.

    Raises: DataError, if there is none.
    """
    found: dict[str, tuple[str, ...]] = {}
    lists = ((key, value) for key, value in data.items() if isinstance(value, list))
    listed = {f"{key}[{place}]": one for key, several in lists for place, one in enumerate(several)}
    for key, value in {**data, **listed}.items():
        address = urlparse(value) if isinstance(value, str) else None
        path = "" if address is None else unquote((parse_qs(address.query).get("d") or [address.path])[0])
        path = path.replace("\\", "/").lstrip("/")
        if _PICTURE.search(path):
            last = PurePosixPath(path).name
            found[key] = (path, last, UPLOADED.sub("", last))
    if not found:
        raise DataError(f"{where} names no image in its data: {str(data)[:80]}")
    return found
