"""What a model that reads and points is taught before it talks: seven tasks, a JSON record a line.

Below the data root, `pretraining.jsonl` (or another name). `task` says what else a record has; pictures are named
relative to the root, boxes are x0 y0 x1 y1 and quads four corners x y, in pixels:

    caption          image, text, language (English or Chinese)
    vqa              image, question, answer
    grounded_caption image, text with <ref> and <box> in thousandths, language
    refer            image, phrase, boxes
    describe_region  image, box, text
    ocr              image, lines: [{text, quad}]
    text             text

The question stands behind the picture with nothing in between, and the answer is all that is learned.

Source: Qwen-VL (arXiv 2308.12966), the formats of its second stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import (
    checked_format,
    field,
    find_file,
    open_sized,
    require,
    require_train,
    table_field,
)
from segue.data.base import Rows
from segue.data.tables import read_lines
from segue.errors import DataError
from segue.types import Message, Part, Region, Sample

FILE = "pretraining.jsonl"
CAPTION = "Generate the caption in {language}:"
GROUNDED_CAPTION = "Generate the caption in {language} with grounding:"
OCR = "OCR with grounding:"

Turn = tuple[tuple[Part, ...], tuple[Part, ...]]
"""A question without its picture, and the answer."""


def load(root: Path, split: str, *, file: str = FILE) -> Rows:
    """A row per record; nothing of it is left to chance. The split is train.

    Raises: ConfigError, DataError.
    """
    require_train(split, "pretraining")
    require(root, [file], "a JSON record a line, with its task")
    source = f"pretraining/{split}"
    return Rows(source, list(enumerate(read_lines(root / file))), partial(_sample, source=source, root=root))


def _sample(row: tuple[int, Any], rng: np.random.Generator, *, source: str, root: Path) -> Sample:
    number, record = row
    question, answer = table_field(TASKS, record, "task", "the row")(record)
    image = None if record["task"] == "text" else field(record, "image", str, "the row")
    media = None if image is None else open_sized(find_file([root], image))
    messages = (Message("user", question if media is None else (media, *question)), Message("assistant", answer))
    shown = () if media is None else (0,)
    return Sample(f"{number}", "chat", messages, source=source, group=image or f"{number}", frames=shown)


def caption(record: Mapping[str, Any]) -> Turn:
    """A picture and what is written about it."""
    return (CAPTION.format(language=_language(record)),), (f" {_text(record, 'text')}",)


def vqa(record: Mapping[str, Any]) -> Turn:
    """A question and its short answer."""
    return (f" {_text(record, 'question')} Answer:",), (f" {_text(record, 'answer')}",)


def grounded_caption(record: Mapping[str, Any]) -> Turn:
    """A caption whose phrases carry their places."""
    return (GROUNDED_CAPTION.format(language=_language(record)),), (f" {_text(record, 'text')}",)


def refer(record: Mapping[str, Any]) -> Turn:
    """A phrase, and where its things are."""
    boxes = tuple(Region(box=_box(box)) for box in field(record, "boxes", list, "the row"))
    if not boxes:
        raise DataError("the row has no box; a phrase to be found needs at least one")
    return (Region(phrase=_text(record, "phrase")),), boxes


def describe_region(record: Mapping[str, Any]) -> Turn:
    """A place, and what is there."""
    there = Region(phrase="This", box=_box(field(record, "box", list, "the row")))
    return (there,), (f" is {_text(record, 'text')}",)


def ocr(record: Mapping[str, Any]) -> Turn:
    """A page, and its lines with their places, in reading order."""
    lines = []
    for number, line in enumerate(field(record, "lines", list, "the row")):
        where = f"line {number}"
        with checked_format(f"the quad of {where}"):
            quad = np.array(field(line, "quad", list, where), float).reshape(4, 2)
        box = np.concatenate([quad.min(0), quad.max(0)])
        lines.append(Region(phrase=field(line, "text", str, where), quad=quad, box=box))
    if not lines:
        raise DataError("the row has no line; a page to be read needs at least one")
    return (OCR,), tuple(lines)


def text(record: Mapping[str, Any]) -> Turn:
    """Text alone: nothing is asked."""
    return ("",), (_text(record, "text"),)


TASKS: dict[str, Callable[[Mapping[str, Any]], Turn]] = {
    task.__name__: task for task in (caption, vqa, grounded_caption, refer, describe_region, ocr, text)
}


def _text(record: Mapping[str, Any], name: str) -> str:
    words: str = field(record, name, str, "the row")
    if not words.strip():
        raise DataError(f"the row's {name} is empty; leave the row out")
    return words.strip()


def _language(record: Mapping[str, Any]) -> str:
    languages = {"English": "English", "Chinese": "Chinese"}
    return table_field(languages, {"language": "English", **record}, "language", "the row")


def _box(edges: Any) -> np.ndarray:
    with checked_format("a box"):
        return np.array(edges, float).reshape(4)
