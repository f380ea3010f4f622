"""VGG Image Annotator (VIA 1 and 2): one JSON file, an annotation or a whole project.

    {"a.jpg1234": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "polygon", "all_points_x": [...],
     "all_points_y": [...]}, "region_attributes": {"text": "the left vessel"}}]}}

What a region is called is its attribute `text`, `caption`, `name`, `label` or `class`, else the first that says
something; of boxes to tick, what is ticked. Other shapes than polygons are no masks: they are counted and left out.

Source: the files that VIA 1.0 and 2.0 export.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.data.annotation_io import checked_format, field
from segue.own_data.formats.entries import Entry, Remark
from segue.own_data.formats.marked import Shape, objects, things

__all__ = ["NAME", "entries", "objects", "recognises", "things"]

log = logging.getLogger(__name__)

NAME = "VIA"
_PROJECT = "_via_img_metadata"
_NAMES = ("text", "caption", "name", "label", "class")


def recognises(content: Any) -> bool:
    """Whether what a JSON file holds is of this form."""
    images = content.get(_PROJECT, content) if isinstance(content, dict) else None
    first = next(iter(images.values()), None) if isinstance(images, dict) else None
    return isinstance(first, dict) and {"filename", "regions"} <= first.keys()


def entries(content: Any, path: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per image with a polygon.

    Raises: DataError, if an image has no name or regions.
    """
    found, others = [], 0
    images = content.get(_PROJECT, content)
    for key, image in images.items():
        name = field(image, "filename", str, f"{path.name}, {key!r}")
        regions = field(image, "regions", list | dict, f"{path.name}, {key!r}")
        listed = list(regions.values()) if isinstance(regions, dict) else regions
        with checked_format(f"{path.name}, {name}"):
            drawn = [_shape(one) for one in listed if one["shape_attributes"].get("name") == "polygon"]
        others += len(listed) - len(drawn)
        if drawn:
            found.append(Entry((name,), drawn))
        else:
            remarks.append(Remark("left_out", f"{path.name}, {key!r}", f"{name} has no polygon"))
    if others or len(found) < len(images):
        log.warning(
            "%s: %d other shapes than polygons are no masks, and %d of %d images have none; they are left out",
            path,
            others,
            len(images) - len(found),
            len(images),
        )
    return found


def _shape(region: Mapping[str, Any]) -> Shape:
    shape, said = region["shape_attributes"], region.get("region_attributes", {})
    order = [*(name for name in _NAMES if name in said), *(name for name in said if name not in _NAMES)]
    text = next((word for name in order if (word := _word(said[name]))), "")
    pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
    return Shape(text, [[number for pair in pairs for number in pair]])


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(name) for name, is_ticked in value.items() if is_ticked)
    return str(value).strip()
