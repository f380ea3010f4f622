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
well. `ref_davis17_objects` takes the masks from DAVIS's own annotations, a folder per video with a PNG per frame, whose
palette numbers the objects, 255 being what nobody can tell; four people in turn describe each object there.

Of some splits only a server knows the masks; they can be asked about, not learned from. ReVOS also says what is in the
foreground of its videos: {video: {"masks_rle": [RLE, or a list of them, for each frame]}}.

Source: Sa2VA's `Sa2VA03RefVOS`. It draws expressions with replacement even where there are enough, and sets a
question as it is, without asking for a mask; neither is done here. The order of counting for training on Ref-DAVIS17
and the place of Ref-SAV's validation files below `video_datas` are assumptions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import shapes
from segue.data.annotation_io import (
    checked_format,
    field,
    first_of,
    lookup,
    open_sized,
    read_annotations,
    require,
    select,
    stated_size,
)
from segue.data.base import Rows, error_context, ordered_draw, spread_draw
from segue.data.dialogue import mask_question, query, segmentation
from segue.data.prompts import clean_phrase
from segue.errors import ConfigError, DataError
from segue.media.folder import frame_files
from segue.types import MaskTrack, Media, Sample


@dataclass(frozen=True, slots=True)
class VideoFiles:
    """Where the files of a split lie below `video_datas`, and what the masks are keyed by; no masks, none are known."""

    frames: str
    expressions: str
    masks: str = ""
    keys: str = "anno_id"
    foreground: str = ""


SOURCES = {
    "revos": {
        split: VideoFiles(
            "revos", f"revos/meta_expressions_{split}_.json", "revos/mask_dict.json", foreground=foreground
        )
        for split, foreground in (("train", ""), ("valid", "revos/mask_dict_foreground.json"))
    },
    "mevis": {
        "valid": VideoFiles("mevis/valid/JPEGImages", "mevis/valid/meta_expressions.json"),
        "test": VideoFiles("mevis/test/JPEGImages", "mevis/test/meta_expressions_release.json"),
    }
    | {
        split: VideoFiles(
            f"mevis/{split}/JPEGImages", f"mevis/{split}/meta_expressions.json", f"mevis/{split}/mask_dict.json"
        )
        for split in ("train", "valid_u")
    },
    "ref_ytvos": {
        "train": VideoFiles(
            "rvos/train/JPEGImages",
            "rvos/meta_expressions/train/meta_expressions.json",
            "rvos/mask_dict.pkl",
            "file order",
        ),
        "valid": VideoFiles("rvos/valid/JPEGImages", "rvos/meta_expressions/valid/meta_expressions.json"),
    },
    "ref_davis17": {
        split: VideoFiles(
            f"davis17/{split}/JPEGImages",
            f"davis17/meta_expressions/{split}/meta_expressions.json",
            f"davis17/{split}/mask_dict.pkl",
            keys,
        )
        for split, keys in (("train", "file order"), ("valid", "sorted"))
    },
    "ref_davis17_objects": {
        "valid": VideoFiles(
            "davis17/valid/JPEGImages",
            "davis17/meta_expressions/valid/meta_expressions.json",
            "davis17/valid/Annotations",
            "palette",
        )
    },
    "ref_sav": {
        "valid": VideoFiles(
            "ref_sav_eval/videos", "ref_sav_eval/meta_expressions_valid.json", "ref_sav_eval/mask_dict.json"
        )
    },
}


_PEOPLE, _VOID = 4, 255  # of Ref-DAVIS17, and of DAVIS's palette


@dataclass(frozen=True, slots=True)
class Expression:
    """A text and, for each object it means, the masks on the video's sorted frames; no object, nothing is meant.

    `about` is what a score needs to know: its id, and what else is said of it.
    """

    text: str
    objects: tuple[Sequence[Any], ...]
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReferredVideo:
    """One row: a video, the names of its annotated frames in order, and its expressions."""

    name: str
    frames: tuple[str, ...]
    size: tuple[int, int] | None
    expressions: tuple[Expression, ...]


def load(
    root: Path,
    split: str,
    *,
    variant: str,
    frames: int | None = 5,
    expressions: int | None = 5,
    prompt: str | tuple[str, str] | None = None,
) -> Rows:
    """A row per video; its sample asks for some expressions on some frames.

    `frames` is how many different ones are drawn, in order; all, if the video has fewer or with None. `expressions` is
    how many are drawn, none twice before each has come once; None asks for all in order.

    With a `prompt`, every expression is a row of its own, about all frames, in the place of the prompt's `{phrase}`; of
    two prompts the second is for expressions with a question mark. `target` then holds the video, the expression's id
    and what else is said of it, the names of the frames, and the foreground where it is known.

    Raises: ConfigError, DataError.
    """
    source = select(select(SOURCES, variant, "variant of ref_vos"), split, f"split of {variant}")
    home, name = root / "video_datas", f"{variant}/{split}"
    if prompt is None and (not source.masks or source.keys == "palette"):
        raise ConfigError(f"{name} can be asked about, but not learned from; choose another split or variant")
    masks = first_of(home, [source.masks, str(Path(source.masks).with_suffix(".json"))]) if source.masks else ""
    needed = [path for path in (source.frames, source.expressions, masks, source.foreground) if path]
    require(home, needed, "a folder of frames per video, expressions, and masks where they are known")
    videos = field(read_annotations(home / source.expressions), "videos", dict, source.expressions)
    tracks = read_annotations(home / masks) if masks and source.keys != "palette" else None
    with checked_format(source.expressions):
        numbers = _numbers(videos, source.keys)
        rows = [_video(key, video, numbers, tracks) for key, video in videos.items() if video.get("expressions")]
    if prompt is None:
        make = partial(_sample, source=name, home=home / source.frames, num_frames=frames, num_expressions=expressions)
        return Rows(name, rows, make)
    foreground = read_annotations(home / source.foreground) if source.foreground else {}
    palettes = home / masks if source.keys == "palette" else None
    prompts = (prompt, prompt) if isinstance(prompt, str) else prompt
    asked = _QueryOptions(name, home / source.frames, prompts, palettes, foreground)
    queries = [(video, one) for video in rows for one in video.expressions]
    return Rows(name, queries, partial(_query, how=asked), _medium)


def _numbers(videos: Mapping[str, Mapping[str, Any]], keys: str) -> dict[tuple[str, str], str]:
    """The number of every expression by video and id, as text; none where masks are keyed by `anno_id`."""
    if keys not in ("file order", "sorted"):
        return {}
    names = sorted(videos) if keys == "sorted" else list(videos)
    ordered = [(name, number) for name in names for number in sorted(videos[name].get("expressions", {}))]
    return {place: str(count) for count, place in enumerate(ordered)}


def _video(
    name: str,
    video: Mapping[str, Any],
    numbers: Mapping[tuple[str, str], str],
    tracks: Mapping[str, Sequence[Any]] | None,
) -> ReferredVideo:
    found: list[Expression] = []
    described: Counter[int] = Counter()
    for place, (number, expression) in enumerate(field(video, "expressions", dict, name).items()):
        where = f"{name}, expression {number}"
        keys: list[Any] = []
        about = {"video": name, "expression": number} | _stated(expression, "type_id")
        if tracks is not None:
            keys = [numbers[name, number]] if numbers else field(expression, "anno_id", list, where)
        else:
            stated = expression.get("obj_id", place // _PEOPLE + 1)
            about["object"] = int(stated[0] if isinstance(stated, list) else stated)
            about["annotator"] = described[about["object"]]
            described[about["object"]] += 1
        objects = tuple(lookup(tracks or {}, str(key), f"{where}: mask") for key in keys)
        found.append(Expression(field(expression, "exp", str, where), objects, about))
    return ReferredVideo(name, tuple(sorted(field(video, "frames", list, name))), stated_size(video), tuple(found))


def _stated(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: record[name] for name in names if name in record}


@dataclass(frozen=True, slots=True)
class _QueryOptions:
    """How an evaluation asks: the data's name, its frames, its prompts, and where further truth lies."""

    source: str
    frames: Path
    prompts: tuple[str, str]
    palettes: Path | None
    foreground: Mapping[str, Any]


def _medium(row: tuple[ReferredVideo, Expression]) -> str:
    return row[0].name


def _query(row: tuple[ReferredVideo, Expression], rng: np.random.Generator, *, how: _QueryOptions) -> Sample:
    video, expression = row
    media = open_sized(how.frames / video.name, video.size)
    places = _places(how.frames / video.name, video.frames)
    target = {**expression.about, "frames": list(video.frames)}
    with error_context(f"{video.name}, {expression.text!r}"), checked_format("a mask"):
        if how.palettes is None:
            masks = _masks(video, expression, media, range(len(places)), places)
        else:
            masks, void = _palette_masks(how.palettes / video.name, video, target["object"], media, places)
            target |= {"void": void} if void else {}
        if how.foreground:
            shown = field(lookup(how.foreground, video.name, "foreground of"), "masks_rle", list, video.name)
            target["foreground"] = _united(shown, len(places), media)
    messages, regions = query(media, expression.text, how.prompts["?" in expression.text], masks)
    name = f"{video.name}-{expression.about['expression']}"
    return Sample(name, "segment", messages, regions, tuple(places), how.source, video.name, target)


def _united(masks: Sequence[Any], count: int, media: Media) -> list[str]:
    """The union of what there is on each frame: a mask, a list of masks, or nothing."""
    if len(masks) != count:
        raise DataError(f"the foreground has {len(masks)} frames, the video {count}; the files do not belong together")
    frames = [one if isinstance(one, list) else [one] for one in masks]
    return [shapes.united([shapes.rle_mask(mask, media.size) for mask in some if mask], media.size) for some in frames]


def _palette_masks(
    folder: Path, video: ReferredVideo, number: int, media: Media, places: Sequence[int]
) -> tuple[MaskTrack, list[str]]:
    """An object's masks, and what of the frames is void; nothing, if nothing is."""
    values = [shapes.read_values(folder / f"{name}.png", media.size) for name in video.frames]
    counts = [shapes.value_mask(one, [number]) for one in values]
    void = [shapes.value_mask(one, [_VOID]) for one in values] if any((one == _VOID).any() for one in values) else []
    return shapes.track(counts, places, media.size), void


def _sample(
    row: ReferredVideo,
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
        with error_context(f"{row.name}, {expression.text!r}"), checked_format("a mask"):
            _check_seen(expression)
            asked.append(mask_question(_phrase(expression.text), _masks(row, expression, media, shown, places), rng))
    messages, regions = segmentation(media, asked, rng)
    return Sample(row.name, "segment", messages, regions, tuple(places), source, group=row.name)


def _places(folder: Path, names: Sequence[str]) -> list[int]:
    """The frame numbers of these names; a folder may hold more frames than are annotated."""
    numbers = {path.stem: number for number, path in enumerate(frame_files(folder))}
    return [lookup(numbers, name, f"frame of {folder.name} called") for name in names]


def _phrase(text: str) -> str:
    return text.strip() if "?" in text else clean_phrase(text.replace(".", ""))


def _masks(
    row: ReferredVideo, expression: Expression, media: Media, shown: Sequence[int], places: Sequence[int]
) -> MaskTrack | None:
    """The union of an expression's objects on the frames shown, or None if it means nothing.

    An object that is not in sight on these frames has empty masks.
    """
    if not expression.objects:
        return None
    for masks in expression.objects:
        if len(masks) != len(row.frames):
            raise DataError(f"there are {len(masks)} masks for {len(row.frames)} frames; expected one or null for each")
    counts = []
    for position in shown:
        here = [masks[position] for masks in expression.objects if masks[position]]
        counts.append(shapes.united([shapes.rle_mask(mask, media.size) for mask in here], media.size))
    return shapes.track(counts, places, media.size)


def _check_seen(expression: Expression) -> None:
    """What is never in sight cannot be learned from."""
    if expression.objects and not any(mask for masks in expression.objects for mask in masks):
        raise DataError("its masks are empty on every frame; give masks, or an empty anno_id if it fits nothing")
