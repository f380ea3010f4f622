"""SEED-Bench: multiple-choice questions about images (dimensions 1 to 9) and short videos (10 to 12).

Below the data root:

    data/seed_bench/SEED-Bench.json
    data/seed_bench/SEED-Bench-image/                    images, dimensions 1 to 9
    data/seed_bench/SSV2/videos/                         videos, dimension 10
    data/seed_bench/EPIC-KITCHENS/videos/test/           videos, dimension 11
    data/seed_bench/BreakfastII_15fps_qvga_sync/         videos, dimension 12

The file is {"questions": [{"question_id", "question", "choice_a" to "choice_d", "answer": letter, "data_id",
"question_type_id": dimension, "segment"?}], "question_type": {name: dimension}}. A segment is in seconds, or in frames
where its ends are whole numbers. The names of the folders of videos are our choice.

Source: Li et al. 2023; frames are chosen as Qwen-VL's evaluation does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import field, find_file, open_sized, read_annotations, require, select, table_field
from segue.data.base import Rows
from segue.data.questions import filled, lettered, make_sample, unique
from segue.errors import DataError
from segue.media import open_media, read_frames
from segue.types import Media, Sample

HOME = "data/seed_bench"
PROMPT = "\nQuestion: {question}\nOptions: {options}\nAnswer:"
IMAGES = "SEED-Bench-image"
VIDEOS = {10: "SSV2/videos", 11: "EPIC-KITCHENS/videos/test", 12: "BreakfastII_15fps_qvga_sync"}

_SPLITS = {"image": range(1, 10), "video": range(10, 13), "all": range(1, 13)}


def load(root: Path, split: str, *, frames: int = 4, prompt: str = PROMPT) -> Rows:
    """A row per question of the split image, video or all. `prompt` has places for {question} and {options}.

    The medium stands before the prompt. A video is a clip of `frames` frames of its segment, decoded when the row is
    asked for; Qwen-VL is shown them as images with a line break after each. `target` holds question_id, dimension,
    medium, options and letter.

    Raises: ConfigError, DataError.
    """
    dimensions = select(_SPLITS, split, "split of seed_bench")
    file = f"{HOME}/SEED-Bench.json"
    require(root, [file], "SEED-Bench.json there")
    content = read_annotations(root / file)
    kinds = field(content, "question_type", dict, file)
    names = {number: name for name, number in kinds.items() if isinstance(number, int)}
    rows = []
    for place, record in enumerate(field(content, "questions", list, file)):
        if field(record, "question_type_id", int, f"question {place}") in dimensions:
            rows.append(record)
    used = sorted({VIDEOS.get(record["question_type_id"], IMAGES) for record in rows})
    require(root, [f"{HOME}/{folder}" for folder in used], "the images and videos there")
    unique([str(record.get("question_id")) for record in rows], file)
    make = partial(_sample, home=root / HOME, names=names, num_frames=frames, prompt=prompt)
    return Rows(f"seed_bench/{split}", rows, make)


def _sample(
    record: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    home: Path,
    names: Mapping[int, str],
    num_frames: int,
    prompt: str,
) -> Sample:
    dimension = record["question_type_id"]
    options = [field(record, f"choice_{letter}", str, "the row") for letter in "abcd"]
    letter = table_field({letter: letter for letter in "ABCD"}, record, "answer", "the row")
    name = field(record, "data_id", str, "the row")
    # the file lists the videos of EPIC-KITCHENS in folders, and they come without
    file = name.rpartition("/")[2] if dimension == 11 else name
    media = open_sized(find_file([home / VIDEOS.get(dimension, IMAGES)], file))
    shown: tuple[int, ...] = (0,)
    if dimension in VIDEOS:
        media, shown = _clip(media, record.get("segment"), num_frames)
    target = {
        "question_id": field(record, "question_id", int | str, "the row"),
        "dimension": names.get(dimension, str(dimension)),
        "medium": "video" if dimension in VIDEOS else "image",
        "options": options,
        "letter": letter,
    }
    text = filled(prompt, question=field(record, "question", str, "the row"), options=lettered(options))
    source = f"seed_bench/{target['medium']}"
    return make_sample(
        str(target["question_id"]), (media, text), target, answer=letter, source=source, group=name, frames=shown
    )


def _clip(media: Media, segment: Any, number: int) -> tuple[Media, tuple[int, ...]]:
    """The chosen frames of a video as a clip of their own, and their numbers in that."""
    first, length = _segment(media, segment)
    pixels = read_frames(media, [first + place for place in spread(length, number)]).pixels
    return open_media(pixels), tuple(range(len(pixels)))


def _segment(media: Media, segment: Any) -> tuple[int, int]:
    """First frame of a segment and the length that is spread over, as the evaluation counts it."""
    if segment is None:
        return 0, media.count - 1
    if not (isinstance(segment, list) and len(segment) == 2 and all(isinstance(end, int | float) for end in segment)):
        raise DataError(f"the row has segment = {str(segment)[:60]}; expected its first and last second or frame")
    if isinstance(segment[0], int):
        start, end = max(segment[0], 0), min(int(segment[1]), media.count)
    elif media.fps is None:
        raise DataError(f"{media.name} has no frame rate, and the segment {segment} is in seconds; give the video file")
    else:
        start, end = (int(min(max(second * media.fps, 0), media.count - 1)) for second in segment)
    if not 0 <= start < media.count:
        raise DataError(f"the segment {segment} begins beyond the {media.count} frames of {media.name}")
    return start, end - start


def spread(length: int, number: int) -> list[int]:
    """`number` places in a segment of that length, each in the middle of an equal part; all if there are fewer, and the
    first at least.
    """
    if number > length:
        return list(range(length)) or [0]
    step = (length - 1) / number
    return [int(step / 2) + round(step * place) for place in range(number)]
