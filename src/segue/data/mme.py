"""MME: questions with yes or no about images, two an image, in fourteen subtasks.

Below the data root:

    data/mme/MME_Benchmark_release_version/<subtask>/    images and a text of the same name beside each, or
                                                         images/ and questions_answers_YN/

A text has a line per question: the question, a tab, Yes or No.

Source: Fu et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segue.data.annotation_io import first_of, open_sized, require, select
from segue.data.base import Rows
from segue.data.questions import filled, make_sample
from segue.errors import DataError
from segue.types import Sample

HOMES = ("data/mme/MME_Benchmark_release_version/MME_Benchmark", "data/mme/MME_Benchmark_release_version", "data/mme")
PROMPT = "\n{question}"
PICTURES = (".jpg", ".jpeg", ".png", ".JPG", ".PNG")


@dataclass(frozen=True, slots=True)
class _Row:
    subtask: str
    number: int
    picture: Path
    question: str
    truth: str


def load(root: Path, split: str = "test", *, prompt: str = PROMPT) -> Rows:
    """A row per question, subtasks and images in the order of their names. `prompt` has a place for {question}; the
    image stands before it. `target` holds subtask, image, truth. The split is test.

    Raises: ConfigError, DataError.
    """
    select({"test": None}, split, "split of mme")
    home = first_of(root, HOMES)
    require(root, [home], "a folder for each subtask there")
    rows: list[_Row] = []
    for subtask in sorted(path for path in (root / home).iterdir() if path.is_dir()):
        rows += _questions(subtask)
    if not rows:
        raise DataError(f"{root / home} holds no questions; expected a folder for each subtask with images and texts")
    return Rows("mme/test", rows, partial(_sample, prompt=prompt), _image)


def _image(row: _Row) -> str:
    return str(row.picture)


def _questions(subtask: Path) -> list[_Row]:
    pictures = {path.stem: path for path in sorted(subtask.rglob("*")) if path.suffix in PICTURES}
    rows = []
    for text in sorted(subtask.rglob("*.txt")):
        if text.stem not in pictures:
            raise DataError(f"{text} asks about an image, and there is none of that name below {subtask}")
        for number, line in enumerate(_lines(text), start=1):
            question, _, truth = line.rpartition("\t")
            if truth.strip() not in ("Yes", "No") or not question.strip():
                raise DataError(f"{text}, line {number} is {line[:60]!r}; expected a question, a tab, Yes or No")
            rows.append(_Row(subtask.name, number, pictures[text.stem], question.strip(), truth.strip()))
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}; copy it again") from error


def _sample(row: _Row, rng: np.random.Generator, *, prompt: str) -> Sample:
    image = f"{row.subtask}/{row.picture.name}"
    target = {"subtask": row.subtask, "image": row.picture.name, "question": row.question, "truth": row.truth}
    parts = (open_sized(row.picture), filled(prompt, question=row.question))
    name = f"{image}/{row.number}"
    return make_sample(name, parts, target, answer=row.truth, source="mme/test", group=image, frames=(0,))
