"""TouchStone: open questions about images, answers to which a language model compares with its own.

Below the data root:

    data/touchstone/touchstone_20230831.tsv, and touchstone_zh.tsv (our name) of the same columns

The columns are index, image (base64), question, human_annotation, gpt4_ha_answer, category and task_name.

Source: Bai et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from segue.data.annotation_io import field, require, select
from segue.data.base import Rows
from segue.data.questions import filled, make_sample, unique
from segue.data.tables import embedded_image, read_table
from segue.types import Sample

FILES = {"en": "data/touchstone/touchstone_20230831.tsv", "zh": "data/touchstone/touchstone_zh.tsv"}
PROMPT = "\n{question}"


def load(root: Path, split: str = "en", *, prompt: str = PROMPT) -> Rows:
    """A row per question of the split en or zh. `prompt` has a place for {question}; the image stands before it.

    `target` holds the other columns but the image, and `categories` as a list.

    Raises: ConfigError, DataError.
    """
    file = select(FILES, split, "split of touchstone")
    require(root, [file], "the questions there")
    rows = read_table(root / file)
    unique([field(row, "index", str, f"row {place}") for place, row in enumerate(rows)], file)
    return Rows(f"touchstone/{split}", rows, partial(_sample, prompt=prompt, source=f"touchstone/{split}"))


def _sample(row: Mapping[str, str], rng: np.random.Generator, *, prompt: str, source: str) -> Sample:
    columns = ("index", "human_annotation", "gpt4_ha_answer", "category", "task_name")
    target = {name: field(row, name, str, "the row") for name in columns}
    categories = [one.strip() for one in target["category"].split(",") if one.strip()]
    media = embedded_image(field(row, "image", str, "the row"), "the row")
    parts = (media, filled(prompt, question=field(row, "question", str, "the row")))
    return make_sample(
        target["index"],
        parts,
        {**target, "categories": categories},
        answer=target["gpt4_ha_answer"],
        source=source,
        group=target["index"],
        frames=(0,),
    )
