"""Boxes asked for in words: RefCOCO, RefCOCO+ and RefCOCOg as Qwen-VL's evaluation has them.

Below the data root:

    data/refcoco/refcoco_val.jsonl     also refcoco+/ and refcocog/, and the splits testA, testB, test

A line is {"image": path below the root, "sent": phrase, "bbox": [x0, y0, x1, y1] in pixels, "width", "height"}.

Source: Yu et al. 2016, Mao et al. 2016, in the converted form of Qwen-VL's evaluation.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.base import Rows
from segue.data.questions import asked, filled, shown_by
from segue.data.sources import chosen, field, found, open_sized, require, stated_size
from segue.data.tables import read_lines
from segue.errors import DataError
from segue.types import Sample

PROMPT = "<ref>{phrase}</ref><box>"

_SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}


def load(root: Path, split: str, *, variant: str = "refcoco", prompt: str = PROMPT) -> Rows:
    """A row per phrase. `prompt` has a place for {phrase}; the image stands before it, with nothing in between.

    `target` holds box (x0 y0 x1 y1 in pixels) and size (height, width).

    Raises: ConfigError, DataError.
    """
    splits = chosen(_SPLITS, variant, "variant of box_text")
    chosen(dict.fromkeys(splits), split, f"split of {variant}")
    file = f"data/{variant}/{variant}_{split}.jsonl"
    require(root, [file], "a JSON record a line, and the images where these say")
    name = f"{variant}_box/{split}"
    rows = list(enumerate(read_lines(root / file)))
    return Rows(name, rows, partial(_sample, root=root, prompt=prompt, source=name), shown_by("image"))


def _sample(row: tuple[int, Any], rng: np.random.Generator, *, root: Path, prompt: str, source: str) -> Sample:
    number, record = row
    image = field(record, "image", str, "the row")
    media = open_sized(found([root], image), stated_size(record))
    box = field(record, "bbox", list, "the row")
    if len(box) != 4 or not all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box):
        raise DataError(f"the row has bbox = {str(box)[:60]}; expected x0 y0 x1 y1 in pixels")
    edges = [float(edge) for edge in box]
    target = {"box": edges, "size": list(media.size)}
    parts = (media, filled(prompt, phrase=field(record, "sent", str, "the row")))
    return asked(str(number), parts, target, answer=_said(edges, media.size), source=source, group=image, frames=(0,))


def _said(box: list[float], size: tuple[int, int]) -> str:
    """The box as Qwen-VL would say it behind a `<box>`."""
    height, width = size
    left, top, right, bottom = (
        min(max(round(999 * edge / side), 0), 999)
        for edge, side in zip(box, (width, height, width, height), strict=True)
    )
    return f"({left},{top}),({right},{bottom})</box>"
