"""Questions about images with one answer: GQA, OCR-VQA, ChartQA and AI2D.

Below the data root, in Qwen-VL's converted form or as it is published:

    data/gqa/testdev_balanced.jsonl, or testdev_balanced_questions.json and images/
    data/ocrvqa/ocrvqa_val.jsonl and ocrvqa_test.jsonl, or dataset.json and images/
    data/chartqa/test_human.jsonl and test_augmented.jsonl, or test/test_human.json, test/test_augmented.json, test/png/
    data/ai2diagram/test.jsonl

A line of the first is {"image": path below the root, "question", "question_id"?, "answer": text or a list of texts}.

Source: the converted files of Qwen-VL's evaluation; Hudson and Manning 2019, Mishra et al. 2019, Masry et al. 2022,
Kembhavi et al. 2016.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import checked_format, field, first_of, read_annotations, require, select
from segue.data.base import Rows
from segue.data.questions import QUESTION_PROMPT, Question, question_sample, shown_by
from segue.data.tables import read_lines
from segue.errors import DataError
from segue.types import Sample

FILES = {
    "gqa/testdev": ("data/gqa/testdev_balanced.jsonl", "data/gqa/testdev_balanced_questions.json"),
    "ocrvqa/val": ("data/ocrvqa/ocrvqa_val.jsonl", "data/ocrvqa/dataset.json"),
    "ocrvqa/test": ("data/ocrvqa/ocrvqa_test.jsonl", "data/ocrvqa/dataset.json"),
    "chartqa/human": ("data/chartqa/test_human.jsonl", "data/chartqa/test/test_human.json"),
    "chartqa/augmented": ("data/chartqa/test_augmented.jsonl", "data/chartqa/test/test_augmented.json"),
    "ai2d/test": ("data/ai2diagram/test.jsonl",),
}
_OCRVQA_SPLITS = {"train": 1, "val": 2, "test": 3}


def load(root: Path, split: str, *, variant: str, prompt: str = QUESTION_PROMPT) -> Rows:
    """A row per line. `prompt` has a place for {question}; the image stands before it, with nothing in between.

    `target` holds question_id, image and answers.

    Raises: ConfigError, DataError.
    """
    name = f"{variant}/{split}"
    file = first_of(root, select(FILES, name, "variant and split of vqa_jsonl"))
    require(root, [file], "the questions there, and the images where these say")
    rows = list(enumerate(read_lines(root / file) if file.endswith(".jsonl") else _published(root, file, name)))
    return Rows(name, rows, partial(_sample, root=root, prompt=prompt, source=name), shown_by("image"))


def _published(root: Path, file: str, name: str) -> list[dict[str, Any]]:
    """The records of a published file in the form of the converted ones."""
    variant, _, split = name.partition("/")
    home = f"{Path(file).parent}"
    content = read_annotations(root / file)
    with checked_format(file):
        if variant == "gqa":
            return [
                {
                    "image": f"{home}/images/{one['imageId']}.jpg",
                    "question_id": number,
                    **_pair(one, "question", "answer"),
                }
                for number, one in content.items()
            ]
        if variant == "chartqa":
            return [{"image": f"{home}/png/{one['imgname']}", **_pair(one, "query", "label")} for one in content]
        return [
            {"image": f"{home}/images/{number}{Path(one['imageURL']).suffix}", "question": question, "answer": answer}
            for number, one in content.items()
            if one["split"] == _OCRVQA_SPLITS[split]
            for question, answer in zip(one["questions"], one["answers"], strict=True)
        ]


def _pair(record: Any, question: str, answer: str) -> dict[str, Any]:
    return {"question": record[question], "answer": record[answer]}


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
