"""What the readers of all annotation formats give: media by name, and things on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.data import shapes
from segue.data.prompts import clean_phrase
from segue.errors import DataError
from segue.types import Media

SPLITS = ("train", "val", "test")
_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One annotated image or video.

    `names` are what its file may be called, most likely first, relative to where media lie; `record` is its annotation
    as it was found, not yet checked; `size` the (height, width) that it was annotated at, if it says so; `frames` the
    annotated frame numbers, (0,) for an image. `split` and `group` are empty where the annotation does not say them.
    """

    names: tuple[str, ...]
    record: Any
    size: tuple[int, int] | None = None
    frames: tuple[int, ...] = (0,)
    split: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Thing:
    """What a phrase means: one mask for each of the frames asked for, as run-length strings; any may be empty.

    `is_absent` says that the annotation tells the phrase to fit nothing.
    """

    phrase: str
    counts: tuple[str, ...]
    is_absent: bool = False


Things = Callable[[Entry, Media, Sequence[int]], list[Thing]]
"""Checks an entry's record and gives the things on these of its frames, or raises DataError."""


@dataclass(frozen=True, slots=True)
class Source:
    """An annotation file or folder that was recognised: its entries, how to read them, and where the media may lie."""

    path: Path
    entries: tuple[Entry, ...]
    things: Things
    folders: tuple[Path, ...]


def split_named(text: str) -> str:
    """The split that a word is a name of (`valid` and `validation` are val), or nothing."""
    word = text.lower()
    word = _SYNONYMS.get(word, word)
    return word if word in SPLITS else ""


def stated_split(text: str, where: str) -> str:
    """The split that an annotation states; nothing, if it states none or CVAT's `default`.

    Raises: DataError, for any other word, lest something kept apart is taken for training.
    """
    if text.lower() in ("", "default"):
        return ""
    if not split_named(text):
        raise DataError(f"{where} is in the split {text!r}; expected {', '.join(SPLITS)}")
    return split_named(text)


def merged(named: Iterable[tuple[str, Mapping[int, str]]], media: Media, frames: Sequence[int]) -> list[Thing]:
    """One thing for each phrase, in the order of their first coming: the union of all masks that bear it.

    Two masks of one phrase cannot be told apart by whoever is asked for it. `named` are phrases with their mask, by
    frame number.
    """
    found: dict[str, list[Mapping[int, str]]] = {}
    for phrase, masks in named:
        found.setdefault(clean_phrase(phrase), []).append(masks)
    return [
        Thing(
            phrase,
            tuple(shapes.united([one[frame] for one in several if frame in one], media.size) for frame in frames),
        )
        for phrase, several in found.items()
    ]
