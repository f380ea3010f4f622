"""CVAT's own XML, version 1.1: one file for all images, and one with tracks for each video. Masks are exact.

Source: CVAT's documentation of its formats "CVAT for images 1.1" and "CVAT for video 1.1".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool

from segue.geometry.masks import box_of
from segue.integrations.forms import Written, frames_of, media_of, seen, shared_names
from segue.integrations.runs import Named
from segue.output.results import FEW_PIXELS
from segue.types import MaskTrack

Box = tuple[int, int, int, int]
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold: those that steer, and bytes of a file's name that are no text."""


def write(answers: Sequence[Named], out: Path) -> Written:
    """`annotations.xml` for the images, `NAME.xml` for each video."""
    written = Written()
    images = [named for named in answers if media_of(named).kind == "image"]
    if images:
        root = _root()
        for number, named in enumerate(images):
            media = media_of(named)
            image = ElementTree.SubElement(root, "image", {"id": str(number), "name": media.name} | _size(media.size))
            for _, region, mask in seen(named, 0):
                ElementTree.SubElement(image, "mask", {"label": region.phrase, "source": "auto"} | _runs(mask))
                written.objects += 1
        _write(root, out / "annotations.xml")
    for named in answers:
        if media_of(named).kind == "video":
            written.objects += _write_video(named, out / f"{named[0]}.xml")
    written.pictures = len(answers)
    written.notes += shared_names(answers)
    return written


def runs_in_box(mask: Bool[np.ndarray, "h w"]) -> tuple[list[int], Box]:
    """The run lengths of a mask that is not empty along the rows of its box, background first; and the box: left, top,
    width, height.
    """
    box = box_of(mask)
    assert box is not None, "an empty mask has no box"
    left, top, right, bottom = (int(edge) for edge in box)
    inside = mask[top:bottom, left:right].ravel()
    turns = np.flatnonzero(np.diff(inside, prepend=False)).tolist()
    return np.diff([0, *turns, inside.size]).tolist(), (left, top, right - left, bottom - top)


def _write_video(named: Named, path: Path) -> int:
    """Tracks of a video; gives how many there are."""
    media, root, count = media_of(named), _root(), 0
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    ElementTree.SubElement(task, "size").text = str(media.count)
    original = ElementTree.SubElement(task, "original_size")
    for side, length in _size(media.size).items():
        ElementTree.SubElement(original, side).text = length
    ElementTree.SubElement(task, "source").text = media.name
    for region in named[1].regions:
        if region.masks is not None and (rows := _track(region.masks, frames_of(named), media.count)):
            track = ElementTree.SubElement(root, "track", id=str(count), label=region.phrase, source="auto")
            track.extend(rows)
            count += 1
    _write(root, path)
    return count


def _track(masks: MaskTrack, frames: Sequence[int], count: int) -> list[ElementTree.Element]:
    """An object's masks, and where it goes away its last one once more, as `outside`."""
    rows: list[ElementTree.Element] = []
    for position, frame in enumerate(frames):
        mask = masks.dense(position)
        is_there = np.count_nonzero(mask) >= FEW_PIXELS
        if is_there:
            about = {"frame": str(frame), "outside": "0", "keyframe": "1"}
            rows.append(ElementTree.Element("mask", about | _runs(mask)))
        is_last = position + 1 == len(frames) and frame + 1 < count
        if rows and rows[-1].get("outside") == "0" and (not is_there or is_last):
            gone = str(frame if not is_there else frame + 1)
            rows.append(ElementTree.Element("mask", rows[-1].attrib | {"frame": gone, "outside": "1"}))
    return rows


def _runs(mask: Bool[np.ndarray, "h w"]) -> dict[str, str]:
    runs, box = runs_in_box(mask)
    sides = dict(zip(("left", "top", "width", "height"), map(str, box), strict=True))
    return {"occluded": "0", "rle": ", ".join(map(str, runs)), **sides, "z_order": "0"}


def _size(size: tuple[int, int]) -> dict[str, str]:
    return {"width": str(size[1]), "height": str(size[0])}


def _root() -> ElementTree.Element:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    return root


def _write(root: ElementTree.Element, path: Path) -> None:
    for element in root.iter():
        element.attrib = {name: _NO_XML.sub("\ufffd", value) for name, value in element.attrib.items()}
        element.text = element.text and _NO_XML.sub("\ufffd", element.text)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
