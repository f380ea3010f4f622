"""What an answer points at, as JSON: one form for chat, segmentation and sessions, with a version."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from pycocotools import mask as coco

from segue.geometry.masks import full_logits
from segue.geometry.polygons import area_error, polygons
from segue.serve.scheduler import FrameRles
from segue.serve.schema import Answering
from segue.types import Answer, MaskTrack, Media, Region

VERSION = 1
"""Of the form of regions; it grows when a reader of the old one could be misled."""

OF_IMAGES = ("rle", "probabilities", "polygons", "polygon_error")
"""What of a frame stands on a region itself, if the medium is an image."""

Json = dict[str, Any]


def regions_to_json(answer: Answer, body: Answering) -> list[Json]:
    """The regions of an answer, in reading order.

    Each has `id`, `phrase`, `span` ([start, stop) characters of the text), `box` and `quad` in pixels of the medium,
    `score` and `presence` in [0, 1]; of an image `rle`, of a video `frames` with `index`, `seconds`, `rle`, `box`,
    `score` and `presence` each. A place that was given in words alone has no mask. With `probabilities`, 8-bit PNG data
    URLs say of each pixel how probable it is, for a threshold to be moved without asking again; 128 is 0.5. With
    `polygons`, each part of a mask has one, x0 y0 x1 y1 ... in pixels, holes being filled; `polygon_error` is the share
    of the mask's pixels in which they differ from it.
    """
    return [_region(number, region, answer.media, body) for number, region in enumerate(answer.regions)]


def told(answer: Answer, body: Answering) -> Json:
    """What an answer points at, and in what."""
    about = {"regions_version": VERSION, "media": media_to_json(answer.media)}
    return {"regions": regions_to_json(answer, body)} | about


def found_to_json(regions: Sequence[Region]) -> list[Json]:
    """Regions that will be followed: what was said of them, before there are masks."""
    return [{"id": number, "phrase": one.phrase, "span": _span(one)} for number, one in enumerate(regions)]


def frame_to_json(frame: FrameRles, media: Media | None, body: Answering) -> Json:
    """The masks of all regions on one frame, in the order of the regions."""
    rows = zip(frame.rles, frame.scores, frame.presence, strict=True)
    masks = [_mask(frame.size, rle, body) | {"score": score, "presence": presence} for rle, score, presence in rows]
    return {"index": frame.index, "seconds": _seconds(frame.index, media), "regions": masks}


def media_to_json(media: Media | None) -> Json | None:
    """What regions lie on."""
    if media is None:
        return None
    height, width = media.size
    return {"kind": media.kind, "width": width, "height": height, "frames": media.count, "fps": media.fps}


def _region(number: int, region: Region, media: Media | None, body: Answering) -> Json:
    presence = None if region.presence is None or not len(region.presence) else float(region.presence.max())
    told: Json = {
        "id": number,
        "phrase": region.phrase,
        "span": _span(region),
        "box": _numbers(region.box),
        "quad": None if region.quad is None else [_numbers(corner) for corner in region.quad],
        "score": region.score,
        "presence": presence,
    }
    if region.masks is None or media is None:
        return told
    frames = [_frame(region, position, media, body) for position in range(len(region.masks))]
    if media.kind == "video":
        return told | {"frames": frames}
    return told | {name: value for name, value in frames[0].items() if name in OF_IMAGES}


def _frame(region: Region, position: int, media: Media, body: Answering) -> Json:
    assert region.masks is not None and region.scores is not None and region.presence is not None
    index = int(region.masks.index[position])
    told: Json = {"index": index, "seconds": _seconds(index, media)}
    told |= _mask(region.masks.size, region.masks.rles[position], body)
    told |= {"score": float(region.scores[position]), "presence": float(region.presence[position])}
    if body.probabilities:
        told["probabilities"] = _probabilities(region.masks, position)
    return told


def _mask(size: tuple[int, int], rle: str, body: Answering) -> Json:
    counted = {"size": list(size), "counts": rle.encode("ascii")}
    left, top, width, height = coco.toBbox(counted).tolist()
    box = [left, top, left + width, top + height] if width and height else None
    told: Json = {"rle": {"size": list(size), "counts": rle}, "box": box}
    return told | (polygons_to_json(coco.decode(counted).astype(bool)) if body.polygons else {})


def polygons_to_json(mask: Bool[np.ndarray, "h w"]) -> Json:
    """The polygons of a mask, and how far they are from it; an empty one has none."""
    found = polygons(mask)
    error = round(area_error(found, mask), 4) if found else 0.0
    return {"polygons": [one.ravel().round(2).tolist() for one in found], "polygon_error": error}


def _probabilities(track: MaskTrack, position: int) -> str:
    levels = 255 / (1 + np.exp(-full_logits(track, position).clip(-50, 50)))
    # a pixel in the mask is 128 or more, and no other is
    levels = np.where(track.dense(position), np.ceil(levels).clip(128), np.floor(levels).clip(max=127))
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _seconds(index: int, media: Media | None) -> float | None:
    seconds = None if media is None else media.seconds_at(index)
    return None if seconds is None else round(seconds, 4)


def _span(region: Region) -> list[int] | None:
    return None if region.span is None else list(region.span)


def _numbers(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else [round(float(value), 2) for value in values]
