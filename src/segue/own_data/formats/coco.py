"""COCO JSON: polygons or run lengths of objects on images.

What an object is called is its annotation's own "text" or "caption", else the name of its category. Objects of one
image with the same name are one thing, as nobody can ask for one of them apart. Images without an object are left
out. An image's "split", which scripts add, says its split.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from segue.data import shapes
from segue.data.annotation_io import by_id, field, stated_size
from segue.data.annotation_io import lookup as named_entry
from segue.errors import DataError
from segue.own_data.formats.entries import Drawn, Entry, Remark, Thing, is_flat, merged, read_masks, split_named
from segue.types import Media

log = logging.getLogger(__name__)

NAME = "COCO"


def recognises(content: Any) -> bool:
    """Whether what a JSON file holds is of this form."""
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def entries(content: Any, path: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per image that has an object; annotations of images or categories that are not there are refused.

    Raises: DataError, if there are no lists of images and annotations.
    """
    categories = by_id(_plain(content.get("categories", []), "id"), f"{path.name}, category")
    images = by_id(_plain(field(content, "images", list, path.name), "id"), f"{path.name}, image")
    marked: dict[Any, list[tuple[str, Any]]] = {}
    annotations = field(content, "annotations", list, path.name)
    for number, annotation in enumerate(_plain(annotations, "image_id", "category_id")):
        where = f"{path.name}, annotation {number}"
        try:
            image = field(annotation, "image_id", int | str, where)
            named_entry(images, image, f"{where}: image")
            text = annotation.get("text") or annotation.get("caption")
            text = text or named_entry(categories, annotation.get("category_id"), f"{where}: category").get("name", "")
        except DataError as error:
            remarks.append(Remark("refused", where, str(error)))
            continue
        segmentation = annotation.get("segmentation")
        if is_flat(segmentation):
            segmentation = [segmentation]
            remarks.append(Remark("flat_polygon", where, f"the object of {images[image].get('file_name')}"))
        if annotation.get("iscrowd"):
            remarks.append(Remark("crowd", where, f"{text!r} of {images[image].get('file_name')}"))
        marked.setdefault(image, []).append((text, segmentation))
    for key in images.keys() - marked.keys():
        remarks.append(Remark("left_out", f"{path.name}, image {key}", f"{images[key].get('file_name')} has no object"))
    if len(marked) < len(images):
        log.warning("%s: %d of %d images have no object and are left out", path, len(images) - len(marked), len(images))
    return [_entry(images[number], record, f"image {number}") for number, record in marked.items()]


def _entry(image: Mapping[str, Any], record: list[tuple[str, Any]], where: str) -> Entry:
    # a word for no split of ours, as the restval of COCO's captions, may be anything: such images are in no split
    split = split_named(str(image.get("split")))
    return Entry((field(image, "file_name", str, where),), record, stated_size(image), split=split)


def _plain(records: list[Any], *ids: str) -> list[Any]:
    """Records with these ids as whole numbers, where they are those: pandas writes 1.0, hand-made files "1"."""
    found = [dict(record) if isinstance(record, dict) else record for record in records]
    for record in found:
        for name in ids if isinstance(record, dict) else ():
            if match := re.fullmatch(r"(0|[1-9][0-9]{0,17})(\.0)?", str(record.get(name))):
                record[name] = int(match[1])
    return found


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The things of an image.

    Raises: DataError, if a mask is missing, wrong or empty.
    """
    return merged(read_masks(objects(entry, media, frames)), media, frames)


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The objects of an image."""
    for number, (text, segmentation) in enumerate(entry.record):
        counts = partial(shapes.segmentation_mask, segmentation, media.size)
        polygons = segmentation if isinstance(segmentation, list) else None
        yield Drawn(number, f"object {number} ({text!r})", text, 0, counts, polygons)
