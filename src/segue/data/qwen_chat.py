"""Dialogues in Qwen-VL's form: pictures and places stand as marks in the text.

Below the data root, `conversations.json` (or another name): a list of {"id", "conversations": [{"from": "user" |
"assistant", "value": text}]}. A picture is `<img>path below the root</img>`, a place `<ref>phrase</ref><box>...</box>`
in thousandths of the picture shown last. "Picture 1: " before a picture is left to the model's template.

Source: the README and `finetune.py` of Qwen-VL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import field, find_file, open_sized, read_list, require, require_train
from segue.data.base import Rows
from segue.errors import DataError
from segue.geometry.qwen_notation import Element, elements, placed, points
from segue.types import Media, Message, Part, Region, Sample

CONVERSATIONS = "conversations.json"

_NUMBERED = re.compile(r"Picture \d+: ?\Z")


def load(root: Path, split: str, *, conversations: str = CONVERSATIONS) -> Rows:
    """A row per dialogue; nothing of it is left to chance. The split is train.

    Raises: ConfigError, DataError.
    """
    require_train(split, "qwen_chat")
    require(root, [conversations], "a JSON list of conversations, with pictures named relative to this folder")
    rows = list(enumerate(read_list(root / conversations)))
    return Rows(f"qwen_chat/{split}", rows, partial(_sample, source=f"qwen_chat/{split}", root=root))


def _sample(row: tuple[int, Any], rng: np.random.Generator, *, source: str, root: Path) -> Sample:
    number, record = row
    shown: list[Media] = []
    messages: list[Message] = []
    for place, turn in enumerate(field(record, "conversations", list, "the row")):
        where = f"turn {place}"
        role, value = (field(turn, name, str, where) for name in ("from", "value"))
        if role not in ("user", "assistant"):
            raise DataError(f"{where} is from {role!r}; expected user or assistant")
        # the original drops an answer that nobody asked for, at the beginning only
        if messages or role == "user":
            parts = _asked(value, root, shown) if role == "user" else (_said(value, where),)
            messages.append(Message("user" if role == "user" else "assistant", tuple(parts)))
    group = str(shown[0].name) if shown else ""
    # ids need not be unique
    name = f"{number}-{record.get('id', '')}"
    return Sample(name, "chat", tuple(messages), source=source, group=group or name, frames=(0,) if shown else ())


def _said(value: str, where: str) -> str:
    if any(element.kind == "image" for element in elements(value)):
        raise DataError(f"{where} is an answer with an <img>; only users show pictures")
    return value


def _asked(value: str, root: Path, shown: list[Media]) -> Iterator[Part]:
    """A question's parts; what it shows is added to `shown`.

    Raises: DataError, for an `<img>` that is not closed or an address; MediaError and LimitError, as opening does.
    """
    parts = list(elements(value))
    if any("<img>" in part.inner for part in parts):
        raise DataError(f"the question {value[:60]!r} has an <img> without its </img>")
    for place, element in enumerate(parts):
        if element.kind == "image":
            shown.append(_opened(element.inner, root))
            yield shown[-1]
        elif element.kind in ("box", "quad"):
            # one behind its phrase was taken along with it
            if not (place and parts[place - 1].kind == "ref"):
                yield from _places([element], "", shown)
        elif element.kind == "ref":
            here = parts[place + 1 : place + 2]
            yield from _places([one for one in here if one.kind in ("box", "quad")], element.inner, shown)
        elif text := _NUMBERED.sub("", element.inner) if _shows_next(parts, place) else element.inner:
            yield text


def _shows_next(parts: Sequence[Element], place: int) -> bool:
    return place + 1 < len(parts) and parts[place + 1].kind == "image"


def _places(marked: Sequence[Element], phrase: str, shown: Sequence[Media]) -> Iterator[Region]:
    """A phrase and its place as one region; a phrase without a place has neither box nor quad.

    Raises: DataError, for a place that is not well formed, or that is on no picture.
    """
    if not marked:
        yield Region(phrase=phrase)
    for element in marked:
        corners = points(element)
        if corners is None or not shown:
            raise DataError(
                f"the place {element.inner[:60]!r} is {'on no picture' if corners is not None else 'not well formed'}; "
                "expected corners such as (0,0),(999,999) of the picture shown before"
            )
        yield placed(corners, shown[-1].size, phrase)


def _opened(name: str, root: Path) -> Media:
    if re.match(r"\w+://", name):
        raise DataError(f"the picture {name[:60]!r} is an address; fetch it first and name the file")
    return open_sized(find_file([root], name))
