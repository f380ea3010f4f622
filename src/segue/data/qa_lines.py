"""Questions about images, a JSON record a line: GQA, OCR-VQA, ChartQA and AI2D.

Below the data root:

    data/gqa/testdev_balanced.jsonl        data/gqa/images/
    data/ocrvqa/ocrvqa_val.jsonl, ocrvqa_test.jsonl
    data/chartqa/test_human.jsonl, test_augmented.jsonl
    data/ai2diagram/test.jsonl

A line is {"image": path below the root, "question", "question_id"?, "answer": text or a list of texts}.

Source: the converted files of Qwen-VL's evaluation; Hudson and Manning 2019, Mishra et al. 2019, Masry et al. 2022,
Kembhavi et al. 2016.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.base import Rows
from segue.data.questions import Question, question_sample, shown_by
from segue.data.sources import chosen, field, require
from segue.data.tables import read_lines
from segue.errors import DataError
from segue.types import Sample

FILES = {
    "gqa/testdev": "data/gqa/testdev_balanced.jsonl",
    "ocrvqa/val": "data/ocrvqa/ocrvqa_val.jsonl",
    "ocrvqa/test": "data/ocrvqa/ocrvqa_test.jsonl",
    "chartqa/human": "data/chartqa/test_human.jsonl",
    "chartqa/augmented": "data/chartqa/test_augmented.jsonl",
    "ai2d/test": "data/ai2diagram/test.jsonl",
}


def load(root: Path, split: str, *, variant: str, prompt: str = "{question} Answer:") -> Rows:
    """A row per line. `prompt` has a place for {question}; the image stands before it, with nothing in between.

    `target` holds question_id, image and answers.

    Raises: ConfigError, DataError.
    """
    name = f"{variant}/{split}"
    file = chosen(FILES, name, "variant and split of qa_lines")
    require(root, [file], "a JSON record a line, and the images where these say")
    rows = list(enumerate(read_lines(root / file)))
    return Rows(name, rows, partial(_sample, root=root, prompt=prompt, source=name), shown_by("image"))


def _sample(row: tuple[int, Any], rng: np.random.Generator, *, root: Path, prompt: str, source: str) -> Sample:
    number, record = row
    image = field(record, "image", str, "the row")
    told = field(record, "answer", str | list, "the row")
    answers = [told] if isinstance(told, str) else told
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"the row has answer = {str(told)[:60]}; expected a text, or a list of texts")
    stated = record.get("question_id")
    target = {"question_id": stated if isinstance(stated, int | str) else number, "image": image}
    text = field(record, "question", str, "the row")
    question = Question(str(number), image, (root,), text, tuple(answers), target)
    return question_sample(question, prompt=prompt, source=source)
