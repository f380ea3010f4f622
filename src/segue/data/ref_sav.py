"""Ref-SAV: referring segmentation on the videos of SA-V, the training part.

Below the data root:

    video_datas/Ref-SAV.json    the descriptions
    video_datas/sam_v_full/     SA-V as it is distributed: videos (.mp4) and their masklets (_manual.json, _auto.json)

`Ref-SAV.json` is {video: {"video_path", "anno_path", "objects": {number: {"formated": text}}}}; paths are relative to
`sam_v_full`. A masklet file holds `masklet`: a list over the annotated frames, which are every fourth of the video,
each a list of COCO RLEs, one for each object in the order of their numbers.

Source: Ravi et al. 2024 (SA-V); Sa2VA's `Sa2VA03RefVOS` with `dataset_type="refsav"`. It drops a folder that its
paths name twice, reads whole videos and dies on one whose masks do not match; here only the frames shown are decoded,
and such a video is a bad sample. Its validation part has another form: `ref_vos`, variant ref_sav.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segue.data import shapes
from segue.data.annotation_io import checked_format, field, find_file, open_sized, read_annotations, require, select
from segue.data.base import Rows, error_context, ordered_draw, spread_draw
from segue.data.dialogue import segmentation
from segue.data.prompts import sample_wording
from segue.errors import DataError
from segue.types import MaskTrack, Sample

STEP = 4
"""Of the frames of SA-V's videos, at 24 per second, every fourth is annotated."""

LAYOUT = {"train": ("video_datas/Ref-SAV.json", "video_datas/sam_v_full")}


@dataclass(frozen=True, slots=True)
class SavVideo:
    """One row: a video and its masklets below `sam_v_full`, and descriptions by the number of the object."""

    name: str
    video: str
    masklets: str
    objects: tuple[tuple[int, str], ...]


def load(root: Path, split: str, *, frames: int | None = 5, expressions: int | None = 5) -> Rows:
    """A row per video; its sample asks for some of the described objects on some of the annotated frames.

    `frames` and `expressions` as in `ref_vos`.

    Raises: ConfigError, DataError.
    """
    descriptions, home = select(LAYOUT, split, "split of ref_sav (the validation part is ref_vos, variant ref_sav)")
    require(root, [descriptions, home], "both, as SA-V and Ref-SAV are distributed")
    with checked_format(descriptions):
        rows = [_video(name, record) for name, record in read_annotations(root / descriptions).items()]
    name = f"ref_sav/{split}"
    make = partial(_sample, source=name, home=root / home, num_frames=frames, num_expressions=expressions)
    return Rows(name, [row for row in rows if row.objects], make)


def _video(name: str, record: Mapping[str, Any]) -> SavVideo:
    objects = [
        (int(number), field(described, "formated", str, f"{name}, object {number}"))
        for number, described in field(record, "objects", dict, name).items()
    ]
    video, masklets = (_path(field(record, key, str, name)) for key in ("video_path", "anno_path"))
    return SavVideo(name, video, masklets, tuple(objects))


def _path(path: str) -> str:
    """The path without its first folder where that is named again behind `sav_train`."""
    parts = PurePosixPath(path).parts
    twice = len(parts) > 3 and parts[1] == "sav_train" and parts[0] == parts[2]
    return "/".join(parts[1:] if twice else parts)


def _sample(
    row: SavVideo,
    rng: np.random.Generator,
    *,
    source: str,
    home: Path,
    num_frames: int | None,
    num_expressions: int | None,
) -> Sample:
    media = open_sized(find_file([home], row.video))
    masklets = field(read_annotations(find_file([home], row.masklets)), "masklet", list, row.masklets)
    annotated = range(0, media.count, STEP)
    if len(masklets) != len(annotated):
        raise DataError(
            f"{row.name} has masks for {len(masklets)} frames, but {media.count} frames of video, of which every "
            f"{STEP}th, {len(annotated)}, should be annotated; copy video and masks again"
        )
    shown = ordered_draw(rng, len(annotated), num_frames)
    places = [annotated[position] for position in shown]
    count = len(row.objects)
    asked = []
    for position in range(count) if num_expressions is None else spread_draw(rng, count, num_expressions):
        number, text = row.objects[position]
        with error_context(f"{row.name}, object {number}"), checked_format("a mask"):
            counts = [_mask(masklets[frame], number, media.size) for frame in shown]
        masks: MaskTrack = shapes.track(counts, places, media.size)
        asked.append((text, sample_wording("describe_questions", rng, phrase=text), masks))
    messages, regions = segmentation(media, asked, rng)
    return Sample(row.name, "segment", messages, regions, tuple(places), source, group=row.name)


def _mask(objects: list[Any], number: int, size: tuple[int, int]) -> str:
    if not 0 <= number < len(objects):
        raise DataError(f"there are masks for {len(objects)} objects only; the descriptions do not belong to them")
    return shapes.rle_mask(objects[number], size)
