"""What the readers of all annotation formats give: media by name, and things on them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segue.data import shapes
from segue.data.base import error_context
from segue.data.prompts import clean_phrase
from segue.errors import DataError
from segue.types import Media

SPLITS = ("train", "val", "test")
_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_SPLIT_FOLDER = re.compile(r"([A-Za-z]+)[-_ ]?(\d{4})?")


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
class Drawn:
    """One object as it is marked on one frame: its number in its annotation, what it is called, and its mask.

    `place` says for people which one it is. `polygons` are what was drawn, not yet checked, on an image of the size
    `drawn_on`, where that is not the medium's; None for masks of other kinds. `counts` gives the mask as run lengths or
    raises DataError or MediaError. `note` says for people what was read of its picture without its saying so.
    """

    number: int
    place: str
    phrase: Any
    frame: int
    counts: Callable[[], str]
    polygons: Any = None
    drawn_on: tuple[int, int] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """What a reader has to say of a part of an annotation file, `place`, that nothing can be learned from as it is.

    "refused" is what makes the whole unfit to be loaded, "left_out" an image without a mask, "passed_over" a file that
    is not read, "flat_polygon" a polygon that stands where a list of them should, and is taken for one, "crowd" a mask
    of many things, which is taken for one object, "disagreement" what two people have marked differently,
    "several_splits" an image that is named for more than one, and "unsure_mask" a mask picture from which more was
    read than it says.
    """

    kind: Literal[
        "refused", "left_out", "flat_polygon", "crowd", "passed_over", "disagreement", "several_splits", "unsure_mask"
    ]
    place: str
    text: str


class CountMismatchError(DataError):
    """An annotation has more or fewer masks than texts."""


class UnmarkedError(DataError):
    """Nothing is marked on a medium."""


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

Objects = Callable[[Entry, Media, Sequence[int]], Iterator[Drawn]]
"""Gives the objects of an entry's record on these of its frames, unchecked one by one, or raises DataError."""


@dataclass(frozen=True, slots=True)
class Source:
    """An annotation file or folder that was recognised: its form, its entries, how to read them, and where the media
    may lie.
    """

    form: str
    path: Path
    entries: tuple[Entry, ...]
    things: Things
    objects: Objects
    folders: tuple[Path, ...]
    remarks: tuple[Remark, ...] = ()


def split_named(text: str) -> str:
    """The split that a word is a name of (`valid` and `validation` are val), or nothing."""
    word = text.lower()
    word = _SYNONYMS.get(word, word)
    return word if word in SPLITS else ""


def split_of_folder(name: str) -> str:
    """The split that a folder is named after, as `val`, `train2017` or `dev`; nothing, if it is none."""
    match = _SPLIT_FOLDER.fullmatch(name)
    return split_named(match[1]) if match else ""


def stated_split(text: str, where: str) -> str:
    """The split that an annotation states; nothing, if it states none or CVAT's `default`.

    Raises: DataError, for any other word, lest something kept apart is taken for training.
    """
    if text.lower() in ("", "default"):
        return ""
    if not split_named(text):
        raise DataError(
            f"{where} is in the split {text!r}; expected {', '.join(SPLITS)}, or none: rename it, or take it out"
        )
    return split_named(text)


def is_flat(mask: Any) -> bool:
    """Whether a polygon stands where a list of polygons should."""
    return isinstance(mask, list) and bool(mask) and all(isinstance(number, int | float) for number in mask)


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


def read_masks(objects: Iterable[Drawn]) -> Iterator[tuple[str, Mapping[int, str]]]:
    """The phrases of objects with their mask, by frame number.

    Raises: DataError, MediaError, saying which object is wrong.
    """
    for drawn in objects:
        with error_context(drawn.place):
            yield drawn.phrase, {drawn.frame: drawn.counts()}
