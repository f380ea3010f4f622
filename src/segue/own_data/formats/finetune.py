"""`annotations.json`, Sa2VA's form for fine-tuning, and what Segue allows beyond it.

    [{"image": "img_001.jpg", "mask": [[[x0, y0, x1, y1, ...], ...], ...], "text": ["left vessel", ...]}]

`mask[i]` is what `text[i]` means: a list of polygons, which are united, or one polygon without the list around it; a
COCO run-length object; or a mask picture, "path.png" (any value but 0) or {"path": "path.png", "value": 3}. Beyond
that an item may have "size": [height, width] of the image that polygons were drawn on, if that was another, "group",
"split", and "negative": true, which says that its texts fit nothing in the image ("mask" is then empty).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import shapes
from segue.data.annotation_io import field
from segue.errors import DataError
from segue.own_data.finding import locate
from segue.own_data.formats.entries import (
    CountMismatchError,
    Drawn,
    Entry,
    Remark,
    Thing,
    UnmarkedError,
    is_flat,
    merged,
    read_masks,
    stated_split,
)
from segue.types import Media

log = logging.getLogger(__name__)

NAME = "Sa2VA's fine-tuning"
_SHOWN = 8


def recognises(content: Any) -> bool:
    """Whether what a JSON file holds is of this form."""
    return (
        isinstance(content, list)
        and bool(content)
        and isinstance(content[0], dict)
        and {"image", "text"} <= content[0].keys()
    )


def entries(content: Any, path: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per item; one that names no image, or no known split, is refused."""
    found_entries, flat = [], 0
    for number, item in enumerate(content):
        where = f"{path.name}, item {number}"
        try:
            name = field(item, "image", str, where)
            split, group = ("" if item.get(said) is None else str(item[said]) for said in ("split", "group"))
            split = stated_split(split, where)
        except DataError as error:
            remarks.append(Remark("refused", where, str(error)))
            continue
        masks = item.get("mask")
        places = [place for place, mask in enumerate(masks) if is_flat(mask)] if isinstance(masks, list) else []
        if places:
            flat += 1
            masks = [[mask] if is_flat(mask) else mask for mask in masks]
            text = f"object {', '.join(map(str, places))} of {name}"
            remarks.append(Remark("flat_polygon", where, text))
        record = {**item, "mask": masks, "folder": str(path.parent)}
        found_entries.append(Entry((name,), record, split=split, group=group))
    if flat:
        log.warning(
            "%s: %d items have a polygon where a list of polygons should be; each is taken for a whole object",
            path,
            flat,
        )
    return found_entries


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The things of an item; those of a negative one have empty masks.

    Raises: DataError, if texts and masks do not match in number, or a mask is wrong or empty.
    """
    if is_negative(entry):
        texts = field(entry.record, "text", list, "the item")
        return [replace(thing, is_absent=True) for thing in merged([(text, {}) for text in texts], media, frames)]
    return merged(read_masks(objects(entry, media, frames)), media, frames)


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The objects of an item; a negative one has none.

    Raises: DataError, if texts and masks do not match in number, or the item's size is none.
    """
    record = entry.record
    texts = field(record, "text", list, "the item")
    masks = record.get("mask") or []
    if is_negative(entry):
        return
    if not isinstance(masks, list):
        raise DataError(f"the item has mask = {str(masks)[:60]!r}; expected a list with one mask for each text")
    if len(masks) != len(texts) or not masks:
        raise (CountMismatchError if masks or texts else UnmarkedError)(
            f"there are {len(masks)} masks for {len(texts)} texts; expected one for each, or "
            '"negative": true and no mask where the texts fit nothing'
        )
    for number, (text, mask) in enumerate(zip(texts, masks, strict=True)):
        polygons = mask if isinstance(mask, list) else None
        drawn_on = None if polygons is None else _drawn_on(record)
        counts = partial(_mask, mask, record, media)
        yield Drawn(number, f"object {number} ({text!r})", text, 0, counts, polygons, drawn_on)


def is_negative(entry: Entry) -> bool:
    """Whether an item says that its texts fit nothing in its image."""
    return entry.record.get("negative") is True and not entry.record.get("mask")


def _mask(mask: Any, record: Mapping[str, Any], media: Media) -> str:
    if isinstance(mask, list):
        return shapes.polygons_mask(mask, media.size, drawn_on=_drawn_on(record))
    if isinstance(mask, dict) and "counts" in mask:
        return shapes.segmentation_mask(mask, media.size)
    name = mask if isinstance(mask, str) else field(mask, "path", str, "the mask")
    value = None if isinstance(mask, str) else mask.get("value")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise DataError(
            f"the mask {name} has the value {value!r}; expected a whole number, a grey level or a place in the palette"
        )
    path = locate([Path(record["folder"]), Path(record["folder"]) / "masks"], name)
    values = shapes.read_values(path, media.size, is_one_thing=value is None)
    counts = shapes.value_mask(values, None if value is None else [value])
    if shapes.is_empty(counts, media.size):
        if value is not None and values.any():
            there = ", ".join(map(str, np.unique(values).tolist()[:_SHOWN]))
            raise shapes.EmptyMaskError(f"the mask {name} has no pixel of the value {value}; its values begin {there}")
        raise shapes.EmptyMaskError(f'the mask {name} is empty; mark the object, or say "negative": true')
    return counts


def _drawn_on(record: Mapping[str, Any]) -> tuple[int, int] | None:
    size = record.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError(f"the item's size is {size!r}; expected [height, width] in pixels")
    return size[0], size[1]
