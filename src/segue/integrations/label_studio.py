"""Label Studio's results: brush strokes in its own packing, boxes, polygons, boxes through a video; and its labelling
configuration, which says what is asked for and how it is drawn.

Source: Label Studio's documentation of its tags and results; the layout of brush strokes as its converter reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Bool

from segue.errors import DataError
from segue.geometry.masks import box_of
from segue.geometry.polygons import polygons
from segue.integrations.forms import Written, frames_of, media_of, seen, shared_names
from segue.integrations.runs import Named
from segue.output.answers import Answer
from segue.output.results import encode_json
from segue.reading import parse_xml
from segue.types import Media, Region

Json = dict[str, Any]

_DRAWN = {
    "BrushLabels": "brushlabels",
    "PolygonLabels": "polygonlabels",
    "RectangleLabels": "rectanglelabels",
    "VideoRectangle": "videorectangle",
}
"""Tags by which objects are drawn, and the types of their results."""
_LABELS = ("Labels", "VideoLabels", "KeyPointLabels", *_DRAWN)
_LENGTHS = (3, 4, 8, 16)
"""Bits that the length of a run may have in a brush stroke."""
_FPS = 25.0  # Label Studio's own, for a video whose rate is not known


@dataclass(frozen=True, slots=True)
class Config:
    """A labelling configuration: `drawn` are the kinds of results by the names of their tags, with `target`, the name
    of the `medium` tag, whose value is the task's `data[key]`. `phrases` are what each label asks for, which is its
    `hint`, or else its own words.
    """

    drawn: Mapping[str, str]
    target: str
    key: str
    medium: str
    phrases: Mapping[str, str]


def parse_config(text: str) -> Config:
    """Read a labelling configuration.

    Raises: DataError, if it is no XML, shows no image or video, or has no tag to draw with.
    """
    try:
        root = parse_xml(text)
    except ValueError as error:
        raise DataError(f"the labelling configuration cannot be read: {error}") from error
    shown = next((tag for tag in root.iter() if tag.tag in ("Image", "Video")), None)
    if shown is None or not shown.get("value", "").startswith("$"):
        raise DataError(
            'the labelling configuration shows no image or video; expected <Image name="..." value="$..."/>'
        )
    drawn = {tag.get("name", ""): _DRAWN[tag.tag] for tag in root.iter() if tag.tag in _DRAWN}
    if not drawn:
        raise DataError(f"the labelling configuration has none of the tags {', '.join(_DRAWN)}")
    labels = [one for tag in root.iter() if tag.tag in _LABELS for one in tag.iter("Label")]
    phrases = {name: name for one in labels if (name := one.get("value"))}
    phrases |= {one.get("value", ""): hint for one in labels if (hint := one.get("hint"))}
    return Config(drawn, shown.get("name", ""), shown.get("value", "")[1:], shown.tag, phrases)


def results(answer: Answer, config: Config) -> list[Json]:
    """All objects of an answer, drawn in every way that the configuration has; a region's phrase is its label."""
    named, found = ("", answer), list[Json]()
    media = media_of(named)
    for name, kind in config.drawn.items():
        around = {"from_name": name, "to_name": config.target, "type": kind}
        if kind == "videorectangle":
            for number, region in enumerate(answer.regions, start=1):
                if sequence := _sequence(region, frames_of(named), media):
                    value: Json = {"framesCount": media.count, "duration": media.count / (media.fps or _FPS)}
                    value |= {"sequence": sequence, "labels": [region.phrase]}
                    found.append(around | {"id": f"{name}-{number}", "value": value} | _score(region))
            continue
        size = {"original_width": media.size[1], "original_height": media.size[0], "image_rotation": 0}
        for number, region, mask in seen(named, 0) if media.kind == "image" else ():
            for part, value in enumerate(_values(kind, mask)):
                row = {"id": f"{name}-{number}-{part}", "value": value | {kind: [region.phrase]}}
                found.append(around | size | row | _score(region))
    return found


def encode_brush(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """A mask as the bytes of a brush stroke; `segue.own_data.formats.label_studio.decode_brush` describes them.

    Every pixel is four values, so all stretches are runs; a run of more than 65,536 values is several.
    """
    flat = mask.ravel()
    turns = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    bits = [f"{4 * flat.size:032b}{8 - 1:05b}", *(f"{length - 1:04b}" for length in _LENGTHS)]
    for start, stop in pairwise(turns):
        value = f"{255 if flat[start] else 0:08b}"
        left = 4 * (stop - start)
        while left:
            count = min(left, 1 << _LENGTHS[-1])
            choice = next(place for place, length in enumerate(_LENGTHS) if count <= 1 << length)
            bits.append(f"1{choice:02b}{count - 1:0{_LENGTHS[choice]}b}{value}")
            left -= count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def write(answers: Sequence[Named], out: Path) -> Written:
    """`tasks.json` to be imported: each task has a prediction. Images have brush strokes, exact; videos have boxes.

    Media are named as files below LOCAL_FILES_DOCUMENT_ROOT, from where Label Studio serves them.
    """
    written, tasks = Written(pictures=len(answers), notes=shared_names(answers)), []
    for named in answers:
        media = media_of(named)
        kind, key = ("brushlabels", "image") if media.kind == "image" else ("videorectangle", "video")
        found = results(named[1], Config({"objects": kind}, key, key, key.title(), {}))
        scores = [one["score"] for one in found if "score" in one]
        about = {"model_version": str(named[1].lineage.get("model", "segue")), "result": found}
        prediction = about | ({"score": float(np.mean(scores))} if scores else {})
        tasks.append(
            {"data": {key: f"/data/local-files/?d={quote(os.fsencode(media.name))}"}, "predictions": [prediction]}
        )
        written.objects += len(found)
    (out / "tasks.json").write_bytes(encode_json(json.dumps(tasks, ensure_ascii=False)))
    if any(media_of(named).kind == "video" for named in answers):
        written.notes.append("Label Studio has boxes alone for videos; the masks are not in the file")
    return written


def _values(kind: str, mask: Bool[np.ndarray, "h w"]) -> Iterator[Json]:
    """A mask as values of results of a kind: a polygon for each of its parts, all else one."""
    height, width = mask.shape
    if kind == "brushlabels":
        yield {"format": "rle", "rle": encode_brush(mask)}
    elif kind == "polygonlabels":
        for polygon in polygons(mask):
            yield {"points": (polygon * (100 / width, 100 / height)).tolist(), "closed": True}
    else:
        yield _box(mask) | {"rotation": 0}


def _box(mask: Bool[np.ndarray, "h w"]) -> Json:
    """The box of a mask that is not empty, in percent."""
    box = box_of(mask)
    assert box is not None, "an empty mask has no box"
    left, top, right, bottom = box / np.tile(mask.shape[::-1], 2) * 100
    return {"x": float(left), "y": float(top), "width": float(right - left), "height": float(bottom - top)}


def _sequence(region: Region, frames: Sequence[int], media: Media) -> list[Json]:
    """The boxes of an object through a video; frames count from 1, and where it goes away it is not `enabled`."""
    rows: list[Json] = []
    for position, frame in enumerate(frames if region.masks is not None else ()):
        assert region.masks is not None
        mask = region.masks.dense(position)
        seconds = media.seconds_at(frame)
        about = {"frame": frame + 1, "time": frame / _FPS if seconds is None else seconds, "rotation": 0}
        if mask.any():
            rows.append(_box(mask) | about | {"enabled": True})
        elif rows and rows[-1]["enabled"]:
            rows[-1]["enabled"] = False
    return rows


def _score(region: Region) -> Json:
    return {} if region.score is None else {"score": float(region.score)}
