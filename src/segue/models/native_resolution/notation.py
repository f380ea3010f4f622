"""How a Qwen2.5-VL and a Qwen3-VL say where things are: `{"bbox_2d": [x0, y0, x1, y1], "label": "a dog"}`, as JSON.

Qwen2.5-VL counts in pixels of the image as it was shown, Qwen3-VL in thousandths of its sides. Masks are asked for as
every Sa2VA does.

Source: the cookbooks of Qwen2.5-VL and Qwen3-VL.
"""

from __future__ import annotations

import json
import re

import numpy as np

from segue.geometry.notation import parse_grounded
from segue.models.protocol import VisionInput
from segue.types import Region

PATCH = 14
"""Pixels along the side of a Qwen2.5-VL's patch."""
THOUSAND = 1000
_NUMBER = r"\s*(-?\d{1,7}(?:\.\d{1,9})?)\s*"
_ITEM = re.compile(r"\{[^{}]*\}")
_BOX = re.compile(rf'"bbox_2d"\s*:\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]')
_LABEL = re.compile(r'"label"\s*:\s*("(?:[^"\\]|\\.)*")')


def parse_relative(raw: str, size: tuple[int, int] | None, _: VisionInput | None) -> tuple[str, tuple[Region, ...]]:
    """An answer of a Qwen3-VL; see `segue.models.protocol.Parse`."""
    return _parse(raw, size, (THOUSAND, THOUSAND))


def parse_absolute(
    raw: str, size: tuple[int, int] | None, vision: VisionInput | None
) -> tuple[str, tuple[Region, ...]]:
    """An answer of a Qwen2.5-VL; without `vision` there are no boxes."""
    shown = None if vision is None or vision.grids is None else vision.grids[-1].tolist()
    return _parse(raw, size, (shown[0] * PATCH, shown[1] * PATCH) if shown else None)


def _parse(raw: str, size: tuple[int, int] | None, shown: tuple[int, int] | None) -> tuple[str, tuple[Region, ...]]:
    """`shown` is the (height, width) that the model counts in."""
    text, regions = parse_grounded(raw)
    if size is None or shown is None:
        return text, regions
    scale = np.array([size[1] / shown[1], size[0] / shown[0]] * 2)
    limits = np.array([size[1], size[0]] * 2)
    boxes = []
    for item in _ITEM.finditer(raw):
        box, label = _BOX.search(item[0]), _LABEL.search(item[0])
        if box:
            placed = np.clip(np.array(box.groups(), float) * scale, 0, limits)
            boxes.append(Region(phrase=_unquoted(label[1]) if label else "", box=placed))
    return text, regions + tuple(boxes)


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]
