"""Boxes asked for in words: RefCOCO, RefCOCO+, RefCOCOg, and the phrases of GRIT.

Below the data root, in Qwen-VL's converted form or as it is published (and as `refcoco` reads it):

    data/refcoco/refcoco_val.jsonl     also refcoco+/ and refcocog/, and the splits testA, testB, test
    data/grit/grit_refexp.jsonl        the phrases of GRIT, in the converted form alone
    ref_seg/refcoco/                   instances.json, refs(unc).p or .json; of refcocog refs(umd)
    ref_seg/refcoco/coco2014/train2014/ or glamm_data/images/coco2014/train2014/    the images of the published form

A line is {"image": path below the root, "sent": phrase, "bbox": [x0, y0, x1, y1] in pixels, "width", "height"}.

Source: Yu et al. 2016, Mao et al. 2016, in the converted form of Qwen-VL's evaluation.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import (
    checked_format,
    field,
    find_file,
    first_of,
    open_sized,
    read_annotations,
    require,
    select,
    stated_size,
)
from segue.data.base import Rows
from segue.data.questions import filled, make_sample, shown_by
from segue.data.refcoco import SHARED_IMAGES, VARIANTS
from segue.data.tables import read_lines
from segue.errors import DataError
from segue.types import MarkedText, Part, Sample

PROMPT = "<ref>{phrase}</ref><box>"
_BLANK = "\0"

_SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
    "grit": ("refexp",),
}


def load(root: Path, split: str, *, variant: str = "refcoco", prompt: str = PROMPT) -> Rows:
    """A row per phrase. `prompt` has a place for {phrase}; the image stands before it, with nothing in between.

    `target` holds box (x0 y0 x1 y1 in pixels) and size (height, width).

    Raises: ConfigError, DataError.
    """
    splits = select(_SPLITS, variant, "variant of box_text")
    select(dict.fromkeys(splits), split, f"split of {variant}")
    file = f"data/{variant}/{variant}_{split}.jsonl"
    home = f"ref_seg/{variant}"
    refs = [f"{home}/{VARIANTS[variant]}{suffix}" for suffix in (".p", ".json") if variant in VARIANTS]
    found_file = first_of(root, [file, *refs])
    is_published = found_file != file
    require(root, [found_file, *([f"{home}/instances.json"] if is_published else [])], "the phrases there")
    lines = _published(root, home, found_file, split) if is_published else read_lines(root / file)
    name = f"{variant}_box/{split}"
    folders = [root, root / home / "coco2014/train2014", root / SHARED_IMAGES]
    make = partial(_sample, folders=folders if is_published else [root], prompt=prompt, source=name)
    return Rows(name, list(enumerate(lines)), make, shown_by("image"))


def _published(root: Path, home: str, refs: str, split: str) -> list[dict[str, Any]]:
    """Every sentence of a split, in the form of the converted lines."""
    coco, referents = read_annotations(root / home / "instances.json"), read_annotations(root / refs)
    lines = []
    with checked_format(home):
        boxes = {one["id"]: one["bbox"] for one in coco["annotations"]}
        images = {one["id"]: one for one in coco["images"]}
        for ref in referents:
            if ref["split"] == split:
                left, top, width, height = boxes[ref["ann_id"]]
                image = images[ref["image_id"]]
                size = {"width": image["width"], "height": image["height"], "image": image["file_name"]}
                box = [left, top, left + width, top + height]
                lines += [{**size, "bbox": box, "sent": sentence["sent"]} for sentence in ref["sentences"]]
    return lines


def _sample(row: tuple[int, Any], rng: np.random.Generator, *, folders: list[Path], prompt: str, source: str) -> Sample:
    number, record = row
    image = field(record, "image", str, "the row")
    media = open_sized(find_file(folders, image), stated_size(record))
    box = field(record, "bbox", list, "the row")
    if len(box) != 4 or not all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box):
        raise DataError(f"the row has bbox = {str(box)[:60]}; expected x0 y0 x1 y1 in pixels")
    edges = [float(edge) for edge in box]
    target = {"box": edges, "size": list(media.size)}
    parts: tuple[Part, ...] = (media, *_prompted(prompt, field(record, "sent", str, "the row")))
    return make_sample(
        str(number), parts, target, answer=_said(edges, media.size), source=source, group=image, frames=(0,)
    )


def _prompted(prompt: str, phrase: str) -> list[str]:
    """The prompt, whose marks count, around the phrase, whose marks do not."""
    before, _, after = filled(prompt, phrase=_BLANK).partition(_BLANK)
    return [MarkedText(before), phrase, MarkedText(after)]


def _said(box: list[float], size: tuple[int, int]) -> str:
    """The box as Qwen-VL would say it behind a `<box>`."""
    height, width = size
    left, top, right, bottom = (
        min(max(round(999 * edge / side), 0), 999)
        for edge, side in zip(box, (width, height, width, height), strict=True)
    )
    return f"({left},{top}),({right},{bottom})</box>"
