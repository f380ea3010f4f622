"""Questions about images with the answers of several people: VQAv2, OK-VQA, TextVQA, VizWiz and DocVQA.

Below the data root, each set as it is published:

    data/vqav2/    v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json (test-dev2015 and
                   test2015 have questions alone); images in data/coco/val2014/ and test2015/
    data/okvqa/    OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json (and train2014)
    data/textvqa/  TextVQA_0.5.1_val.json, train_images/
    data/vizwiz/   val.json or Annotations/val.json (and train, test); images in val/
    data/docvqa/   val/val_v1.0.json, val/documents/ (and test/)

Source: Goyal et al. 2017, Marino et al. 2019, Singh et al. 2019, Gurari et al. 2018, Mathew et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import checked_format, field, first_of, lookup, read_annotations, require, select
from segue.data.base import Rows
from segue.data.questions import QUESTION_PROMPT, Question, question_sample, unique
from segue.errors import DataError
from segue.types import Sample

_PARTS = {"train": "train2014", "val": "val2014", "testdev": "test-dev2015", "test": "test2015"}


def load(root: Path, split: str, *, variant: str = "vqav2", prompt: str = QUESTION_PROMPT, shots: int = 0) -> Rows:
    """A row per question. `prompt` has a place for {question}; the image stands before it, with nothing in between.

    `shots` is how many examples of the split `train` stand before the question, each with its answer; a row has the
    same ones every time.
    `target` holds question_id, image, answers (none where only a server knows them) and kind. A row of another split
    that has no answers is an error of the data.

    Raises: ConfigError, DataError.
    """
    read, splits = select(_READERS, variant, "variant of vqa")
    select(dict.fromkeys(splits.split()), split, f"split of {variant}")
    rows = list(enumerate(read(root, split)))
    unique([question.id for _, question in rows], f"{variant}/{split}")
    pool = [question for question in read(root, "train") if question.answers] if shots else []
    name = f"{variant}/{split}"
    make = partial(_sample, prompt=prompt, source=name, shots=shots, pool=pool)
    return Rows(name, rows, make, None if shots else _image)


def _image(row: tuple[int, Question]) -> str:
    return row[1].image


def _sample(
    row: tuple[int, Question],
    rng: np.random.Generator,
    *,
    prompt: str,
    source: str,
    shots: int,
    pool: list[Question],
) -> Sample:
    number, question = row
    if not question.answers and not _is_hidden(source.partition("/")[2]):
        raise DataError(
            f"question {question.id} of {source} has no answers, so that nothing can be scored; take the file that has "
            "them, or leave the question out"
        )
    return question_sample(question, prompt=prompt, source=source, shots=shots, pool=pool, number=number)


def _is_hidden(split: str) -> bool:
    """Whether only a server knows the answers."""
    return split.startswith("test")


def _vqa(root: Path, split: str, *, home: str, prefix: str) -> list[Question]:
    part = _PARTS[split]
    questions_file = f"data/{home}/{prefix}OpenEnded_mscoco_{part}_questions.json"
    told = f"data/{home}/{prefix}mscoco_{part}_annotations.json"
    # the images of test-dev are a part of those of test
    images = part.replace("-dev", "")
    is_hidden = _is_hidden(split)
    require(
        root,
        [questions_file, f"data/coco/{images}", *([] if is_hidden else [told])],
        "questions, annotations and images",
    )
    with checked_format(told):
        people = {} if is_hidden else {one["question_id"]: one for one in read_annotations(root / told)["annotations"]}
    questions = []
    for number, record in enumerate(field(read_annotations(root / questions_file), "questions", list, questions_file)):
        name, place = field(record, "question_id", int, f"question {number}"), f"question {number}"
        image = f"COCO_{images}_{field(record, 'image_id', int, place):012d}.jpg"
        annotation = {} if is_hidden else lookup(people, name, "annotation of question")
        questions.append(
            _question(
                record, name, image, (root / "data/coco" / images,), annotation, kind=annotation.get("answer_type")
            )
        )
    return questions


def _one_file(
    root: Path, split: str, *, files: Sequence[str], images: str, columns: tuple[str, str, str, str]
) -> list[Question]:
    """A set in one file, whose `columns` are: the key of the list (empty where the file is it), that of a row's name
    and of its image, and what is added to the image's name.
    """
    rows, id_column, image_column, suffix = columns
    file = first_of(root, [f"data/{path}".replace("{split}", split) for path in files])
    images = f"data/{images}".replace("{split}", split)
    require(root, [file, images], "the annotations and the folder of images there")
    content = read_annotations(root / file)
    with checked_format(file):
        records = list(enumerate(field(content, rows, list, file) if rows else content))
    questions = []
    for number, record in records:
        where = f"question {number}"
        picture, name = f"{field(record, image_column, str, where)}{suffix}", field(record, id_column, int | str, where)
        questions.append(_question(record, name, picture, (root / images,), record, kind=record.get("answer_type")))
    return questions


def _question(
    record: Any, name: int | str, image: str, folders: tuple[Path, ...], annotation: Mapping[str, Any], kind: Any = None
) -> Question:
    where = f"question {name}"
    answers = []
    for one in field(annotation, "answers", list, where) if annotation.get("answers") is not None else []:
        answers.append(one if isinstance(one, str) else field(one, "answer", str, f"an answer to {where}"))
    target = {"question_id": name, "image": image, "kind": kind if isinstance(kind, str) else ""}
    return Question(str(name), image, folders, field(record, "question", str, where), tuple(answers), target)


_READERS: dict[str, tuple[Callable[[Path, str], list[Question]], str]] = {
    "vqav2": (partial(_vqa, home="vqav2", prefix="v2_"), "train val testdev test"),
    "okvqa": (partial(_vqa, home="okvqa", prefix=""), "train val"),
    "textvqa": (
        partial(
            _one_file,
            files=["textvqa/TextVQA_0.5.1_{split}.json"],
            images="textvqa/train_images",
            columns=("data", "question_id", "image_id", ".jpg"),
        ),
        "train val",
    ),
    "vizwiz": (
        partial(
            _one_file,
            files=["vizwiz/{split}.json", "vizwiz/Annotations/{split}.json"],
            images="vizwiz/{split}",
            columns=("", "image", "image", ""),
        ),
        "train val test",
    ),
    "docvqa": (
        partial(
            _one_file,
            files=["docvqa/{split}/{split}_v1.0.json", "docvqa/{split}_v1.0.json"],
            images="docvqa/{split}",
            columns=("data", "questionId", "image", ""),
        ),
        "train val test",
    ),
}
