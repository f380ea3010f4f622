"""Your own images or videos with masks, in any of the usual forms.

The form is told from what lies in the folder (`segue.own_data.recognition`); each module of `segue.own_data.formats`
describes one. Splits are folders (`train/`, `val/`, `test/`, each laid out as a whole), files (`instances_train.json`,
`instances_val.json`), or said by the annotations; where nothing says them, whole groups are dealt out, so that what
belongs together never meets across splits.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segue.data import shapes
from segue.data.annotation_io import checked_format, open_sized
from segue.data.base import SEGMENT, Rows, checked, error_context, rng_for
from segue.data.dialogue import MaskQuestion, mask_question, segmentation
from segue.data.prompts import SEGMENT_PROMPTS
from segue.errors import ConfigError, DataError, SegueError
from segue.media import open_media
from segue.own_data.finding import locate, split_words
from segue.own_data.formats import pictures
from segue.own_data.formats.entries import (
    SPLITS,
    Entry,
    Objects,
    Remark,
    Thing,
    Things,
    UnmarkedError,
    split_of_folder,
)
from segue.own_data.recognition import sources_of
from segue.types import Media, Message, Sample

log = logging.getLogger(__name__)

_NO_GROUPS = (
    *("images", "image", "imgs", "img", "img_dir", "jpegimages", "photos", "pictures", "videos", "data", "default"),
    *("annotations", "annotation", "ann", "labels", "label", "json", "jsons", "labelme", "..", "/"),
)
"""Folders that tools and people put all media into, or annotations beside them, in lower case."""
_UPLOADS = re.compile(r"(^|/)upload/\d+/")
MORE_GROUPS = (
    "lay out train/, val/ and test/, or say what belongs together by a pattern for names: --group '([^/]+)$' takes "
    "each file by itself, --group '^([^_]+)' all that begin alike up to a _"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One medium with its annotation, how to read that, and where the medium may lie.

    `is_grouped` says that the annotation or the caller told the group; else it was taken from where the medium lies.
    `empty_is_absent` says that an empty mask tells the thing is not there, as in mask pictures.
    """

    entry: Entry
    things: Things
    objects: Objects
    folders: tuple[Path, ...]
    is_grouped: bool
    empty_is_absent: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """All rows of a folder, whatever is wrong with them, what their readers had to say, and what it was read as."""

    rows: tuple[Row, ...]
    remarks: tuple[Remark, ...]
    form: str


def load(
    root: Path,
    split: str,
    *,
    phrase: str | None = None,
    group: str | None = None,
    frames: int | None = 5,
    empty_is_absent: bool = False,
) -> Rows:
    """A row per image or video; its sample asks for all that is marked there, in an order left to chance.

    `split` is train, val, test, or all. Where the folder says no splits, a tenth of the groups, at least one, goes to
    val and as many to test, chosen by their names. A group is what the annotation calls one; else what the regular
    expression `group` finds in the medium's name (its first bracket, if it has one); else the sub-folder that a
    medium lies in, or the medium itself.

    `phrase` names what mask pictures show, where they do not say it. `frames` is how many annotated frames of a video
    are drawn, one at least with something to be seen; None takes all. An all-black mask picture tells that the thing is
    not there; other empty masks are an error, unless `empty_is_absent` says that they tell it too.

    Raises: ConfigError, DataError.
    """
    chosen = _chosen(root, split, phrase=phrase, group=group)
    make = partial(_sample, source=f"{root.name}/{split}", num_frames=frames, empty_is_absent=empty_is_absent)
    return Rows(f"{root.name}/{split}", chosen, make)


def questions(root: Path, split: str, *, phrase: str | None = None, group: str | None = None) -> Rows:
    """A row per phrase of each image or video, to be measured on; options as in `load`.

    Its sample asks for that phrase alone, in the one wording that models were published with, and has masks of all
    annotated frames. Media that mark nothing have no row; phrases that are not there have a sample without regions.

    Raises: ConfigError, DataError.
    """
    chosen = _chosen(root, split, phrase=phrase, group=group)
    asked = [(row, words) for row in chosen for words in _phrases(row)]
    return Rows(f"{root.name}/{split}", asked, partial(_question, source=f"{root.name}/{split}"), _medium)


def _chosen(root: Path, split: str, *, phrase: str | None, group: str | None) -> list[Row]:
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"unknown split {split!r}; expected {', '.join(SPLITS)} or all")
    found_rows = survey(root, phrase=phrase, group=group)
    refused = next((remark for remark in found_rows.remarks if remark.kind == "refused"), None)
    if refused is not None:
        raise DataError(refused.text)
    return list(found_rows.rows) if split == "all" else _of_split(found_rows.rows, split, root)


def survey(root: Path, *, phrase: str | None = None, group: str | None = None) -> Survey:
    """The rows that `load` would give of all splits, also where it would refuse to, and why; options as there.

    Raises: ConfigError; NotRecognisedError, if the folder is of no known form; DataError, if its files cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the folder that holds your images and masks")
    sources = sources_of(root, phrase)
    said = _by_folders([entry for source in sources for entry in source.entries])
    rows = tuple(
        Row(
            _grouped(said.get(id(entry), entry), group, root.resolve().name, source.folders, shared),
            source.things,
            source.objects,
            source.folders,
            bool(entry.group or group is not None),
            source.things is pictures.things,
        )
        for source, shared in ((source, _num_shared(source.entries)) for source in sources)
        for entry in source.entries
    )
    places = ", ".join(dict.fromkeys(source.path.relative_to(root).as_posix() for source in sources))
    form = f"{sources[0].form} ({'its files' if places == '.' else places})"
    log.info("%s is read as %s", root, form)
    shown = [source.entries for source in sources if source.things is pictures.things]
    if phrase is not None and not any(pictures.is_shown(phrase, entries) for entries in shown):
        log.warning("%s says itself what its masks show, so the phrase %r has no effect", root, phrase)
    return Survey(rows, tuple(remark for source in sources for remark in source.remarks), form)


def _by_folders(entries: Sequence[Entry]) -> dict[int, Entry]:
    """Entries whose split a folder in their path tells, by identity, where folders of two splits are there.

    Only then are these folders what splits are called by; one folder named `test` may be anything.
    """
    if any(entry.split for entry in entries):
        return {}
    told = {
        id(entry): replace(entry, split=split)
        for entry in entries
        if (split := next(filter(None, map(split_of_folder, split_words(entry.names[0]))), ""))
    }
    return told if len({entry.split for entry in told.values()}) > 1 else {}


def splits(rows: Sequence[Row]) -> list[str]:
    """The split of each row: as the annotations say, or else as whole groups are dealt out; nothing for too few."""
    said = {row.entry.split for row in rows}
    if said - {""}:
        return [row.entry.split or "train" for row in rows]
    dealt = {name: split for split, names in _dealt(rows).items() for name in names}
    return [dealt.get(row.entry.group, "") if len(dealt) >= len(SPLITS) else "" for row in rows]


def sample(row: Row) -> Sample:
    """The sample of a row with all that is annotated, on every annotated frame.

    Raises: DataError, MediaError, LimitError, as the rows of `load` do.
    """
    with error_context(row.entry.names[0]):
        made = _sample(row, rng_for(0, 0, 0), source="", num_frames=None, empty_is_absent=False)
        return checked(made)


def _grouped(entry: Entry, pattern: str | None, root: str, places: Sequence[Path], shared: int) -> Entry:
    if entry.group:
        return entry
    name = _path_of(entry)
    if pattern is None:
        inside = _inside(name, root, places, shared)
        parents = [part for part in inside if part.lower() not in _NO_GROUPS and not split_of_folder(part)]
        is_upload = _UPLOADS.search(name.as_posix())  # a folder a project, which is nobody's patient
        return replace(entry, group=_id(entry) if is_upload else "/".join(parents) or _id(entry))
    try:
        match = re.search(pattern, name.as_posix())
    except re.error as error:
        raise ConfigError(f"the group pattern {pattern!r} is no regular expression: {error}") from error
    if match is None:
        raise ConfigError(f"the group pattern {pattern!r} finds nothing in {name}; it must fit every medium's name")
    return replace(entry, group=match[1] if match.re.groups else match[0])


def _path_of(entry: Entry) -> PurePosixPath:
    return PurePosixPath(entry.names[0].replace("\\", "/"))


def _inside(name: PurePosixPath, root: str, places: Sequence[Path], shared: int) -> tuple[str, ...]:
    """The folders of a medium's path; where they are another machine's, those below the data folder or where media lie,
    or else without the first ones, so many as all media share.

    They are another machine's in an absolute path, or if the first is in none of the places.
    """
    folders = name.parts[:-1]
    is_absolute = name.is_absolute() or re.match("[A-Za-z]:", name.as_posix())
    first = next((folder for folder in folders if folder != ".."), "")
    if not first or (not is_absolute and any((place / first).is_dir() for place in places)):
        return folders
    for known in ((root,), _NO_GROUPS[:-2]):
        above = [number for number, folder in enumerate(folders) if folder in known or folder.lower() in known]
        if above:
            return folders[above[-1] + 1 :]
    return folders[shared:]


def _num_shared(entries: Sequence[Entry]) -> int:
    """How many folders the paths of all media begin with alike."""
    return len(os.path.commonprefix([_path_of(entry).parts[:-1] for entry in entries]))


def _of_split(rows: Sequence[Row], split: str, root: Path) -> list[Row]:
    """The rows of a split, as the annotations say, or else by groups."""
    said = {row.entry.split for row in rows}
    if said - {""}:
        mine = [row for row in rows if (row.entry.split or "train") == split]
        if not mine:
            there = ", ".join(sorted(said - {""}))
            raise DataError(f"{root} has no {split}; it has {there}: ask for one of these (--split), or add {split}")
        return mine
    if not rows:
        raise DataError(f"{root} has not one row; `segue doctor {root}` says what is left out, and why")
    dealt = _dealt(rows)
    count = sum(len(groups) for groups in dealt.values())
    if not dealt[split]:
        raise DataError(
            f"{root} says no splits, and {count} groups are too few to deal out to {', '.join(SPLITS)}; {MORE_GROUPS}"
        )
    log.info("%s says no splits: %s is %d of %d groups", root, split, len(dealt[split]), count)
    chosen = set(dealt[split])
    return [row for row in rows if row.entry.group in chosen]


def _dealt(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Groups dealt out to splits by their names; all to train, where they are too few."""
    groups = sorted(
        {row.entry.group for row in rows}, key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    )
    share = max(1, len(groups) // 10) if len(groups) >= len(SPLITS) else 0
    return {"test": groups[:share], "val": groups[share : 2 * share], "train": groups[2 * share :]}


def _sample(
    row: Row, rng: np.random.Generator, *, source: str, num_frames: int | None, empty_is_absent: bool
) -> Sample:
    media = opened(row)
    frames = _drawn(row, media, rng, num_frames)
    things = _things(row, media, frames)
    asked: list[MaskQuestion] = []
    for thing in things:
        if _is_seen(thing, media):
            asked.append(mask_question(thing.phrase, shapes.track(thing.counts, frames, media.size), rng))
        elif thing.is_absent or empty_is_absent:
            asked.append(mask_question(thing.phrase, None, rng))
        elif media.kind == "image":
            raise shapes.EmptyMaskError(
                f"the mask of {thing.phrase!r} is empty; mark it, or set empty_is_absent if it is not there"
            )
    if not asked:
        raise UnmarkedError("nothing is marked on it; mark something, or take it out")
    order = rng.permutation(len(asked))
    messages, regions = segmentation(media, [asked[place] for place in order], rng)
    return Sample(_id(row.entry), "segment", messages, regions, tuple(frames), source, group=row.entry.group)


def opened(row: Row) -> Media:
    """The medium of a row.

    Raises: MediaError, LimitError; DataError, if it is of another size than its annotation states. Only width and
        height that are swapped, as of a photograph that EXIF turns, are taken where everything that is drawn lies in
        the image.
    """
    path = locate(row.folders, *row.entry.names)
    media = open_media(path)
    if row.entry.size in (None, media.size) or is_turned(row, media):
        return media
    if row.entry.size == media.size[::-1]:
        raise DataError(
            f"{path.name} is {media.size[1]}x{media.size[0]} as EXIF turns it, but was annotated before it was turned; "
            "`segue doctor --fix` turns what is drawn, or save the image without EXIF"
        )
    return open_sized(path, row.entry.size)


def is_turned(row: Row, media: Media) -> bool:
    """Whether a row states its image's width and height the other way round, though it was drawn as it is shown."""
    height, width = media.size
    if row.entry.size != (width, height) or height == width or media.kind != "image":
        return False
    try:
        drawn = list(row.objects(row.entry, media, [0]))
        for one in (one for one in drawn if one.polygons is None):
            one.counts()  # pixels know the size that they were drawn at
    except (SegueError, TypeError, AttributeError, KeyError, IndexError, ValueError):
        return False
    points = [polygon for one in drawn if isinstance(one.polygons, list) for polygon in one.polygons]
    return all(_lies_in(polygon, width, height) for polygon in points)


def _lies_in(polygon: Any, width: int, height: int) -> bool:
    if not isinstance(polygon, list) or not all(isinstance(number, int | float) for number in polygon):
        return False
    across, down = polygon[0::2], polygon[1::2]
    return max(across, default=0) <= width + shapes.TOLERANCE and max(down, default=0) <= height + shapes.TOLERANCE


def _phrases(row: Row) -> list[str]:
    """What is to be asked about a medium; an empty phrase stands for a row whose annotation cannot be read."""
    try:
        _, _, things = _whole(row)
    except UnmarkedError:
        return []
    except SegueError:
        return [""]
    return [thing.phrase for thing in things]


def _question(asked: tuple[Row, str], _: np.random.Generator, *, source: str) -> Sample:
    row, phrase = asked
    media, frames, things = _whole(row)
    thing = next((one for one in things if one.phrase == phrase), None)
    if thing is None:
        raise DataError(f"{row.entry.names[0]} has no {phrase!r} any more; its annotation has changed")
    question = Message.user(SEGMENT_PROMPTS[media.kind].replace("{phrase}", phrase), media)
    regions = () if thing.is_absent else (shapes.region(phrase, shapes.track(thing.counts, frames, media.size)),)
    answer = Message("assistant", (SEGMENT if regions else "",))
    name = f"{_id(row.entry)}: {phrase}"
    return Sample(name, "segment", (question, answer), regions, tuple(frames), source, row.entry.group)


def _whole(row: Row) -> tuple[Media, list[int], list[Thing]]:
    """The medium of a row, its annotated frames, and what is marked on them."""
    media = opened(row)
    frames = _drawn(row, media, rng_for(0, 0, 0), None)
    return media, frames, _things(row, media, frames)


def _medium(asked: tuple[Row, str]) -> str:
    return _id(asked[0].entry)


def _id(entry: Entry) -> str:
    """A name that no other medium of the folder has; split folders may use the same file names."""
    return "/".join(filter(None, (entry.split, entry.names[0])))


def _drawn(row: Row, media: Media, rng: np.random.Generator, wanted: int | None) -> list[int]:
    """Annotated frames, ascending: by chance, but one on which something is seen, if there is one."""
    annotated: list[Any] = list(row.entry.frames) or [0]
    if annotated[-1] >= media.count:
        raise DataError(
            f"frame {annotated[-1]} is annotated, but {media.name} has {media.count} frames; is it the right video?"
        )
    if wanted is None or len(annotated) <= wanted:
        return annotated
    shuffled = [annotated[place] for place in rng.permutation(len(annotated))]
    for place, frame in enumerate(shuffled):
        if any(_is_seen(thing, media) for thing in _things(row, media, [frame])):
            shuffled.insert(0, shuffled.pop(place))
            break
    return sorted(shuffled[:wanted])


def _things(row: Row, media: Media, frames: list[int]) -> list[Thing]:
    with checked_format("its annotation"):
        return row.things(row.entry, media, frames)


def _is_seen(thing: Thing, media: Media) -> bool:
    return not all(shapes.is_empty(counts, media.size) for counts in thing.counts)
