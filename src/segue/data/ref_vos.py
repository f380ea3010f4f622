"""Referring segmentation of videos: ReVOS, MeViS, Ref-YTVOS, Ref-DAVIS17 and the validation part of Ref-SAV.

Below the data root, in `video_datas/`, as `SOURCES` lists: a folder of frames per video, the expressions, and the
masks.

    expressions   {"videos": {video: {"frames": ["00000", ...], "height"?, "width"?,
                                      "expressions": {id: {"exp": text, "anno_id"?: [41, ...]}}}}}
    masks         {"41": [COCO RLE or null, one for each of the sorted frames]}

An expression means the union of its `anno_id`s; an empty list says that it fits nothing in the video. Expressions of
Ref-YTVOS and Ref-DAVIS17 have no `anno_id`: there the key of the masks is the number of the expression, counted over
all videos and, in each, over the ids sorted as text ("10" before "2"). `SOURCES` says whether videos count in the
order of the file or sorted. Pickled masks are read without unpickling; JSON of the same content beside them serves as
well.

Source: Sa2VA's `Sa2VA03RefVOS`. It draws expressions with replacement even where there are enough, and sets a
question as it is, without asking for a mask; neither is done here. The order of counting for training on Ref-DAVIS17
and the place of Ref-SAV's validation files below `video_datas` are assumptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import shapes
from segue.data.base import Rows, ordered_draw, spread_draw, within
from segue.data.dialogue import ask, segmentation
from segue.data.prompts import clean_phrase
from segue.data.sources import (
    chosen,
    entry,
    field,
    first_of,
    formed,
    open_sized,
    read_annotations,
    require,
    stated_size,
)
from segue.errors import DataError
from segue.media.folder import frame_files
from segue.types import MaskTrack, Media, Sample


@dataclass(frozen=True, slots=True)
class Source:
    """Where the files of a split lie below `video_datas`, and what the masks are keyed by."""

    frames: str
    expressions: str
    masks: str
    keys: str = "anno_id"


SOURCES = {
    "revos": {
        split: Source("revos", f"revos/meta_expressions_{split}_.json", "revos/mask_dict.json")
        for split in ("train", "valid")
    },
    "mevis": {
        split: Source(
            f"mevis/{split}/JPEGImages", f"mevis/{split}/meta_expressions.json", f"mevis/{split}/mask_dict.json"
        )
        for split in ("train", "valid_u")
    },
    "ref_ytvos": {
        "train": Source(
            "rvos/train/JPEGImages",
            "rvos/meta_expressions/train/meta_expressions.json",
            "rvos/mask_dict.pkl",
            "file order",
        )
    },
    "ref_davis17": {
        split: Source(
            f"davis17/{split}/JPEGImages",
            f"davis17/meta_expressions/{split}/meta_expressions.json",
            f"davis17/{split}/mask_dict.pkl",
            keys,
        )
        for split, keys in (("train", "file order"), ("valid", "sorted"))
    },
    "ref_sav": {
        "valid": Source(
            "ref_sav_eval/videos", "ref_sav_eval/meta_expressions_valid.json", "ref_sav_eval/mask_dict.json"
        )
    },
}


@dataclass(frozen=True, slots=True)
class Expression:
    """A text and, for each object it means, the masks on the video's sorted frames; no object, nothing is meant."""

    text: str
    objects: tuple[Sequence[Any], ...]


@dataclass(frozen=True, slots=True)
class Video:
    """One row: a video, the names of its annotated frames in order, and its expressions."""

    name: str
    frames: tuple[str, ...]
    size: tuple[int, int] | None
    expressions: tuple[Expression, ...]


def load(root: Path, split: str, *, variant: str, frames: int | None = 5, expressions: int | None = 5) -> Rows:
    """A row per video; its sample asks for some expressions on some frames.

    `frames` is how many different ones are drawn, in order; all, if the video has fewer or with None. `expressions` is
    how many are drawn, none twice before each has come once; None asks for all in order, as an evaluation does.

    Raises: ConfigError, DataError.
    """
    source = chosen(chosen(SOURCES, variant, "variant of ref_vos"), split, f"split of {variant}")
    home = root / "video_datas"
    masks = first_of(home, [source.masks, str(Path(source.masks).with_suffix(".json"))])
    require(
        home, [source.frames, source.expressions, masks], "a folder of frames per video, expressions and masks there"
    )
    videos = field(read_annotations(home / source.expressions), "videos", dict, source.expressions)
    tracks = read_annotations(home / masks)
    with formed(source.expressions):
        numbers = _numbers(videos, source.keys)
        rows = [_video(name, video, numbers, tracks) for name, video in videos.items() if video.get("expressions")]
    name = f"{variant}/{split}"
    make = partial(_sample, source=name, home=home / source.frames, num_frames=frames, num_expressions=expressions)
    return Rows(name, rows, make)


def _numbers(videos: Mapping[str, Mapping[str, Any]], keys: str) -> dict[tuple[str, str], str]:
    """The number of every expression by video and id, as text; none where masks are keyed by `anno_id`."""
    if keys == "anno_id":
        return {}
    names = sorted(videos) if keys == "sorted" else list(videos)
    ordered = [(name, number) for name in names for number in sorted(videos[name].get("expressions", {}))]
    return {place: str(count) for count, place in enumerate(ordered)}


def _video(
    name: str, video: Mapping[str, Any], numbers: Mapping[tuple[str, str], str], tracks: Mapping[str, Sequence[Any]]
) -> Video:
    found = []
    for number, expression in field(video, "expressions", dict, name).items():
        where = f"{name}, expression {number}"
        keys = [numbers[name, number]] if numbers else field(expression, "anno_id", list, where)
        objects = tuple(entry(tracks, str(key), f"{where}: mask") for key in keys)
        found.append(Expression(field(expression, "exp", str, where), objects))
    return Video(name, tuple(sorted(field(video, "frames", list, name))), stated_size(video), tuple(found))


def _sample(
    row: Video,
    rng: np.random.Generator,
    *,
    source: str,
    home: Path,
    num_frames: int | None,
    num_expressions: int | None,
) -> Sample:
    media = open_sized(home / row.name, row.size)
    shown = ordered_draw(rng, len(row.frames), num_frames)
    places = _places(home / row.name, [row.frames[position] for position in shown])
    if num_expressions is None:
        wanted = list(range(len(row.expressions)))
    else:
        wanted = spread_draw(rng, len(row.expressions), num_expressions)
    asked = []
    for number in wanted:
        expression = row.expressions[number]
        with within(f"{row.name}, {expression.text!r}"), formed("a mask"):
            asked.append(ask(_phrase(expression.text), _masks(row, expression, media, shown, places), rng))
    messages, regions = segmentation(media, asked, rng)
    return Sample(row.name, "segment", messages, regions, tuple(places), source, group=row.name)


def _places(folder: Path, names: Sequence[str]) -> list[int]:
    """The frame numbers of these names; a folder may hold more frames than are annotated."""
    numbers = {path.stem: number for number, path in enumerate(frame_files(folder))}
    return [entry(numbers, name, f"frame of {folder.name} called") for name in names]


def _phrase(text: str) -> str:
    return text.strip() if "?" in text else clean_phrase(text.replace(".", ""))


def _masks(
    row: Video, expression: Expression, media: Media, shown: Sequence[int], places: Sequence[int]
) -> MaskTrack | None:
    """The union of an expression's objects on the frames shown, or None if it means nothing.

    An object that is not in sight on these frames has empty masks; one that never is cannot be meant.
    """
    if not expression.objects:
        return None
    for masks in expression.objects:
        if len(masks) != len(row.frames):
            raise DataError(f"there are {len(masks)} masks for {len(row.frames)} frames; expected one or null for each")
    if not any(mask for masks in expression.objects for mask in masks):
        raise DataError("its masks are empty on every frame; give masks, or an empty anno_id if it fits nothing")
    counts = []
    for position in shown:
        here = [masks[position] for masks in expression.objects if masks[position]]
        counts.append(shapes.united([shapes.rle_mask(mask, media.size) for mask in here], media.size))
    return shapes.track(counts, places, media.size)
