"""Multiple-choice questions about images: ScienceQA and MMBench.

Below the data root:

    data/scienceqa/scienceqa_test_img.jsonl                         images where its lines say, below the root
                   or problems.json and images/test/<id>/           as it is published; questions without image left out
    data/mmbench/mmbench_dev_20230712/mmbench_dev_20230712.tsv      (and mmbench_test_20230712) with the images inside

A line of the first is {"image", "question", "hint", "choices": [text], "answer": number from 0}. The columns of the
second are index, question, hint, A to D, answer (dev alone), category, image as base64 or the index of the row that
has it, and others. The index names question and rotation: the question is `index` modulo a million.

Source: Lu et al. 2022 in the converted form of Qwen-VL's evaluation; Liu et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import (
    checked_format,
    field,
    find_file,
    first_of,
    lookup,
    open_sized,
    read_annotations,
    require,
    select,
)
from segue.data.base import Rows
from segue.data.questions import LETTERS, filled, lettered, make_sample, shown_by, unique
from segue.data.tables import embedded_image, read_lines, read_table
from segue.errors import DataError
from segue.types import Sample

PROMPT = "Context: {hint}\nQuestion: {question}\nOptions: {options}\nAnswer:"
SCIENCEQA = "data/scienceqa/scienceqa_{split}_img.jsonl"
PROBLEMS = "data/scienceqa/problems.json"
MMBENCH = "data/mmbench/mmbench_{split}_20230712/mmbench_{split}_20230712.tsv"

_ROTATION = 1_000_000
_OPTIONS = "ABCD"


def load(root: Path, split: str, *, variant: str = "scienceqa", prompt: str = PROMPT) -> Rows:
    """A row per question, or per rotation of one. `prompt` has places for {hint}, {question} and {options}.

    A missing hint is "N/A". The image stands before the prompt, with nothing in between. `target` holds options, letter
    (none where only a server knows it) and, for MMBench, index, category and the other columns but the image.

    Raises: ConfigError, DataError.
    """
    file, splits = select(
        {"scienceqa": (SCIENCEQA, ("test",)), "mmbench": (MMBENCH, ("dev", "test"))}, variant, "variant of choice"
    )
    select(dict.fromkeys(splits), split, f"split of {variant}")
    path = file.replace("{split}", split)
    name = f"{variant}/{split}"
    if variant == "scienceqa":
        path = first_of(root, [path, PROBLEMS])
        require(root, [path], "the questions there")
        lines = list(enumerate(_problems(root, split) if path == PROBLEMS else read_lines(root / path)))
        return Rows(name, lines, partial(_line, root=root, prompt=prompt, source=name), shown_by("image"))
    require(root, [path], "the questions there")
    rows = read_table(root / path)
    numbers = [field(row, "index", str, f"row {place}") for place, row in enumerate(rows)]
    unique(numbers, path)
    images = {number: row.get("image", "") for number, row in zip(numbers, rows, strict=True)}
    return Rows(name, rows, partial(_rotation, images=images, prompt=prompt, source=name))


def _problems(root: Path, split: str) -> list[dict[str, Any]]:
    """The published questions of a split that have an image, in the form of the converted lines."""
    content = read_annotations(root / PROBLEMS)
    with checked_format(PROBLEMS):
        return [
            {**record, "image": f"{Path(PROBLEMS).parent}/images/{split}/{number}/{record['image']}"}
            for number, record in content.items()
            if record["split"] == split and record["image"]
        ]


def _line(row: tuple[int, Any], rng: np.random.Generator, *, root: Path, prompt: str, source: str) -> Sample:
    number, record = row
    image = field(record, "image", str, "the row")
    options = field(record, "choices", list, "the row")
    right = field(record, "answer", int, "the row")
    if not all(isinstance(option, str) for option in options) or not 0 <= right < len(options) <= len(LETTERS):
        raise DataError(f"the row has answer {right} of choices {str(options)[:60]}; expected the number of a text")
    hint = record.get("hint")
    question = field(record, "question", str, "the row")
    target = {"options": options, "letter": LETTERS[right]}
    parts = (
        open_sized(find_file([root], image)),
        _filled(prompt, hint if isinstance(hint, str) else "", question, options),
    )
    return make_sample(str(number), parts, target, answer=target["letter"], source=source, group=image, frames=(0,))


def _rotation(
    row: Mapping[str, str], rng: np.random.Generator, *, images: Mapping[str, str], prompt: str, source: str
) -> Sample:
    number = field(row, "index", str, "the row")
    if not number.isdecimal():
        raise DataError(f"the row has index = {number!r}; expected a whole number")
    options = [row[letter] for letter in _OPTIONS if row.get(letter)]
    letter = row.get("answer", "")
    if not letter and source == "mmbench/dev":
        raise DataError(
            f"the row {number} has no answer, so that nothing can be scored; take the file that has answers"
        )
    if letter and letter not in LETTERS[: len(options)]:
        raise DataError(f"the row has answer = {letter!r} of {len(options)} options; expected one of their letters")
    image = row.get("image", "")
    if image.isdecimal():
        image = lookup(images, image, "row with the image of index")
    target = {
        "index": int(number),
        "options": options,
        **({"letter": letter} if letter else {}),
        "category": row.get("category", ""),
        "columns": {name: cell for name, cell in row.items() if name != "image"},
    }
    media = embedded_image(image, f"the image of index {number}")
    text = _filled(prompt, row.get("hint", ""), field(row, "question", str, "the row"), options)
    group = str(int(number) % _ROTATION)
    return make_sample(number, (media, text), target, answer=letter, source=source, group=group, frames=(0,))


def _filled(prompt: str, hint: str, question: str, options: Sequence[str]) -> str:
    return filled(prompt, hint=hint.strip() or "N/A", question=question, options=lettered(options))
