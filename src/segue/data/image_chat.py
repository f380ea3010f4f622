"""Conversations about images in LLaVA's form.

Below the data root:

    llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json    the conversations
    llava_data/llava_images/                                  the images, named relative to this

The file is a list of {"id", "image"?, "conversations": [{"from": "human" | "gpt", "value": text}]}. `<image>` may
stand once, in the first question; a row without `image`, or with an empty one, is text alone.

Source: Liu et al. 2023 (LLaVA-1.5).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import field, find_file, open_sized, read_list, require, require_train
from segue.data.base import Rows
from segue.data.dialogue import dialogue, recorded_turns
from segue.types import Sample

CONVERSATIONS = "llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"
IMAGES = "llava_data/llava_images"


def load(root: Path, split: str, *, conversations: str = CONVERSATIONS, images: str = IMAGES) -> Rows:
    """A row per conversation; nothing of it is left to chance.

    `conversations` and `images` are paths below the root, for files of this form that are not LLaVA's own; the split is
    train.

    Raises: ConfigError, DataError.
    """
    require_train(split, "image_chat")
    require(root, [conversations, images], "a JSON list of conversations and a folder of images")
    rows = list(enumerate(read_list(root / conversations)))
    return Rows(f"image_chat/{split}", rows, partial(_sample, source=f"image_chat/{split}", images=root / images))


def _sample(row: tuple[int, Any], rng: np.random.Generator, *, source: str, images: Path) -> Sample:
    number, record = row
    turns = recorded_turns(field(record, "conversations", list, "the row"))
    # LLaVA's ids are not unique over its parts
    name = f"{number}-{record.get('id', '')}"
    if not record.get("image"):
        return Sample(name, "chat", dialogue(turns, None), source=source, group=name)
    image = field(record, "image", str, "the row")
    media = open_sized(find_file([images], image))
    return Sample(name, "chat", dialogue(turns, media), frames=(0,), source=source, group=image)
