"""ReasonSeg: an image, a question that takes thought, and the mask of what answers it.

Below the data root, `reason_seg/ReasonSeg/` with `train/`, `val/` and `test/`, each with an image NAME.jpg beside each
NAME.json:

    {"text": [question, ...], "is_sentence": true or false,
     "shapes": [{"label": "target" or "ignore", "points": [[x, y], ...], "shape_type": "polygon"}]}

Shapes lie one on the other, large ones below: a pixel is what the topmost shape says, and belongs to the target, to
nothing, or is ignored. A label in which `ignore` stands means that, `flag` nothing, and any other the target, as their
reader has it. A phrase is no sentence and is asked for like one of RefCOCO.

Source: Lai et al. 2024 (LISA), whose reader draws shapes by falling area.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from segue.data import shapes
from segue.data.annotation_io import checked_format, field, open_sized, read_annotations, require, select
from segue.data.base import Rows, error_context
from segue.data.dialogue import query, segmentation
from segue.data.prompts import sample_wording, segment_question
from segue.errors import DataError
from segue.geometry import masks
from segue.media.folder import is_hidden
from segue.reading import read_bytes
from segue.types import Sample

HOME = "reason_seg/ReasonSeg"
_TARGET, _IGNORED = 1, 255
_FLAG = "flag"
"""The one label of shapes that mean nothing."""
_FAR = 2**31
"""Pillow counts pixels in 32 bits and draws something else beyond."""
_SEVERAL = re.compile(rb"[\x80-\xff]{2}|\0")
"""What all encodings of more than one byte have beyond ASCII; a single byte between letters is Windows' code page."""


@dataclass(frozen=True, slots=True)
class ReasonQuestion:
    """One row: an image and a text about it, which is a sentence or a phrase."""

    image: Path
    text: str
    is_sentence: bool
    drawn: tuple[Mapping[str, Any], ...]


def load(root: Path, split: str, *, prompt: str | tuple[str, str] | None = None) -> Rows:
    """A row per image; its sample asks the first of its questions, in a wording drawn by chance.

    With a `prompt`, the question stands in the place of its `{phrase}`; of two prompts the second is for sentences.
    `target` says which it is, and holds what is ignored, as a COCO RLE's counts.

    Raises: ConfigError, DataError.
    """
    select(dict.fromkeys(("train", "val", "test")), split, "split of reason_seg")
    require(root, [f"{HOME}/{split}"], "the images and annotations of ReasonSeg there")
    files = sorted(path for path in (root / HOME / split).glob("*.json") if not is_hidden(path.name))
    if not files:
        raise DataError(f"{root / HOME / split} has no annotations; copy ReasonSeg's NAME.jpg and NAME.json there")
    rows = [_read_question(path) for path in files]
    prompts = (prompt, prompt) if isinstance(prompt, str) else prompt
    name = f"reason_seg/{split}"
    return Rows(name, rows, partial(_sample, source=name, prompts=prompts))


def _read_question(path: Path) -> ReasonQuestion:
    record = _read(path)
    with checked_format(path.name):
        text = field(record, "text", list | str, path.name)
        first = text if isinstance(text, str) else text[0]
        if not first.strip():
            raise DataError(f"{path.name} has the text {first!r}, which asks for nothing; write a question or a phrase")
        shown = field(record, "shapes", list, path.name)
        drawn = tuple(one for one in shown if str(one["label"]).strip().lower() != _FLAG)
    return ReasonQuestion(path.with_suffix(".jpg"), first.strip(), bool(record.get("is_sentence")), drawn)


def _read(path: Path) -> Any:
    """JSON in any encoding that is read or, as some of the official files, in Windows' code page."""
    try:
        data = read_bytes(path)
        if not data.isascii() and not _SEVERAL.search(data):
            return json.loads(data.decode("cp1252"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}; copy it again") from error
    return read_annotations(path)


def _sample(row: ReasonQuestion, rng: np.random.Generator, *, source: str, prompts: tuple[str, str] | None) -> Sample:
    media = open_sized(row.image)
    with error_context(row.image.name), checked_format("a shape"):
        values = _drawn(row.drawn, media.size)
    mask = masks.encode(values == _TARGET)
    track = None if shapes.is_empty(mask, media.size) else shapes.track([mask], (0,), media.size)
    if prompts is None:
        wording = (
            sample_wording("reason_questions", rng, phrase=row.text)
            if row.is_sentence
            else segment_question(row.text, rng)
        )
        messages, regions = segmentation(media, [(row.text, wording, track)], rng)
    else:
        messages, regions = query(media, row.text, prompts[row.is_sentence], track)
    ignored = masks.encode(values == _IGNORED)
    target = {"is_sentence": row.is_sentence, "ignored": ignored}
    return Sample(row.image.stem, "segment", messages, regions, (0,), source, row.image.stem, target)


def _value(shape: Mapping[str, Any]) -> int:
    return _IGNORED if "ignore" in str(shape["label"]).lower() else _TARGET


def _drawn(drawn: tuple[Mapping[str, Any], ...], size: tuple[int, int]) -> np.ndarray:
    """What the topmost shape of each pixel is: 0 for none.

    Raises: DataError, if a shape has a point that is none, or the whole target lies outside the image.
    """
    canvas = Image.new("L", (size[1], size[0]))
    layers = []
    for shape in drawn:
        outline = [(float(x), float(y)) for x, y in field(shape, "points", list, "a shape")]
        numbers = [number for point in outline for number in point]
        shapes.check_numbers(numbers)
        if max(map(abs, numbers), default=0) >= _FAR:
            raise shapes.BadCoordinateError(f"a shape has the coordinate {max(numbers, key=abs):g}, which is no pixel")
        layer = Image.new("1", canvas.size)
        ImageDraw.Draw(layer).polygon(outline, fill=1, outline=1)
        layers.append((int(np.asarray(layer).sum()), layer, _value(shape)))
    covered = [count for count, _, value in layers if value == _TARGET]
    if covered and not any(covered):
        raise shapes.OutsideImageError(
            f"its target lies outside the image of {size[1]}x{size[0]} pixels; give the image it was drawn on"
        )
    for _, layer, value in sorted(layers, key=lambda one: -one[0]):
        canvas.paste(value, mask=layer)
    return np.asarray(canvas)
