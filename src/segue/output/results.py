"""What an answer leaves on the disk: masks, overlay, scores, in one folder that appears when all of it is there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco

from segue.errors import ConfigError
from segue.files import PART, replace_folder
from segue.geometry.masks import encode
from segue.media import iter_frames, open_media, read_image
from segue.output.export import (
    MOST_OBJECTS,
    OverlayWriter,
    read_mask_png,
    write_mask_png,
    write_object_pngs,
    write_png,
)
from segue.output.render import outlines, overlay
from segue.types import Answer, Event, FrameMasks, Media, ObjectsFound, Region

RESULT = "result.json"
ANNOTATIONS = ".annotations"
_WRITTEN = frozenset({RESULT, "masks", "masks.json", "overlay.png", "overlay.mp4", "logits.npz"})
"""All that stands in a result's folder: one that holds more is somebody's own."""
FORMAT = 2
"""Version of the layout of `result.json`; it grows when a reader of the old one could be misled."""

FORMATS = ("png", "coco", "overlay", "logits")
FRAME_RATE = 10.0  # of an overlay whose source has none, such as a frame folder


FEW_PIXELS = 10
"""An object of fewer pixels on every frame is not found: masks of nothing often have some."""


@dataclass(slots=True)
class Found:
    """What of an object is to be seen: on how many frames it has pixels, its largest area in pixels and as a share of
    the frame, and its highest presence (None where that is not told).
    """

    frames: int = 0
    area: int = 0
    share: float = 0.0
    presence: float | None = None

    def add(self, mask: Bool[np.ndarray, "h w"], presence: float) -> None:
        """Take in a frame."""
        area = int(np.count_nonzero(mask))
        self.frames += area > 0
        self.area, self.share = max(self.area, area), max(self.share, area / mask.size)
        if isfinite(presence):
            self.presence = max(presence, self.presence or 0.0)

    @property
    def is_found(self) -> bool:
        """Whether it is there: a mask of more than a few pixels, and no presence that denies it."""
        return self.area >= FEW_PIXELS and (self.presence is None or self.presence >= 0.5)

    def plain(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"is_found": self.is_found, "area": self.area, "share": round(self.share, 6), "frames": self.frames}


class ResultWriter:
    """Writes one medium's result while its events come, a frame at a time; a context manager.

    Everything goes to a hidden folder beside `folder`, which takes its place in `finish` and is removed if the block
    ends without. By format: "png" `masks/00012.png` per frame number, palette indices counting objects from 1, or,
    where objects overlap on any frame, `masks/object_1/00012.png` for each object, white on black, so that no pixel is
    lost; "coco" `masks.json`; "overlay" `overlay.png` or `overlay.mp4`, where places said in words are drawn too on an
    image; "logits" `logits.npz` with `index_1`, `logits_1` for object 1 and so on, in the mask decoder's own
    resolution. `result.json` is always there.
    """

    def __init__(self, folder: Path, media: Media, formats: Iterable[str]):
        self.folder = folder
        self._media = media
        self._formats = frozenset(formats)
        self._part = folder.with_name(PART + folder.name)
        self._labels: list[str] = []
        self._annotations: BinaryIO | None = None
        self._written = 0
        self._found: list[Found] = []
        self._is_apart = False
        self._overlapping: list[int] = []
        self._seconds: dict[int, float | None] = {}
        self._open = ExitStack()
        self._overlay: OverlayWriter | None = None

    def __enter__(self) -> ResultWriter:
        if self._part.exists():
            shutil.rmtree(self._part)
        self._part.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._part.exists():
            return
        try:
            self._open.__exit__(kind, value, trace)
        finally:
            shutil.rmtree(self._part)

    def write(self, event: Event) -> None:
        """Take in one event; text and the final answer are not this method's concern."""
        if isinstance(event, ObjectsFound):
            self._labels = [region.phrase for region in event.regions]
            self._found = [Found() for _ in event.regions]
        if isinstance(event, FrameMasks):
            for found, mask, presence in zip(self._found, event.masks, event.presence, strict=True):
                found.add(mask, float(presence))
            self._seconds[event.index] = _number(event.seconds)
            if "png" in self._formats:
                self._write_masks(event)
            if "coco" in self._formats:
                self._write_annotations(event)
            if "overlay" in self._formats:
                self._write_overlay(event)

    def finish(self, answer: Answer, **more: Any) -> dict[str, Any]:
        """Write what only the whole answer tells, give the folder its name, and return what `result.json` holds.

        `more` are further entries of it, put before the answer's own.
        """
        if "coco" in self._formats and (self._found or not answer.regions):
            write_coco(self._part / "masks.json", self._media, self._labels, self._seconds, self._annotations)
        self._open.close()
        (self._part / ANNOTATIONS).unlink(missing_ok=True)
        if "overlay" in self._formats and self._media.kind == "image":
            self._draw_places(answer.regions)
        if "logits" in self._formats:
            _write_logits(self._part / "logits.npz", answer.regions)
        result = {"format": FORMAT, **more, **describe(answer, self._found), "frames": list(self._seconds)}
        if "png" in self._formats and self._seconds:
            form = "masks/object_{id}/{frame:05d}.png" if self._is_apart else "masks/{frame:05d}.png"
            result |= {"mask_files": form, "overlapping_frames": self._overlapping}
        (self._part / RESULT).write_bytes(encode_json(_readable(result)))
        self._take_along()
        replace_folder(self.folder, self._part)
        return result

    def _take_along(self) -> None:
        """Copy what somebody has put beside an older result, which would go away with it."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name in _WRITTEN:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, self._part / path.name, symlinks=True)
            else:
                shutil.copy2(path, self._part / path.name, follow_symlinks=False)

    def _write_masks(self, frame: FrameMasks) -> None:
        """All objects in one picture as long as none overlap; from the first overlap on, a picture for each."""
        folder, name = self._part / "masks", f"{frame.index:05d}.png"
        folder.mkdir(exist_ok=True)
        if len(frame.masks) > 1 and bool((frame.masks.sum(axis=0) > 1).any()):
            self._overlapping.append(frame.index)
        if not self._is_apart and (self._overlapping or len(frame.masks) > MOST_OBJECTS):
            self._is_apart = True
            for path in sorted(folder.glob("*.png")):
                numbers = read_mask_png(path)
                write_object_pngs(folder, path.name, numbers == np.arange(1, len(frame.masks) + 1)[:, None, None])
                path.unlink()
        if self._is_apart:
            write_object_pngs(folder, name, frame.masks)
        else:
            write_mask_png(folder / name, frame.masks)

    def _write_annotations(self, frame: FrameMasks) -> None:
        """One annotation per object that has any pixel, at once, so that nothing of a frame need be kept."""
        if self._annotations is None:
            self._annotations = self._open.enter_context((self._part / ANNOTATIONS).open("w+b"))
        categories = list(dict.fromkeys(self._labels))
        for number, mask in enumerate(frame.masks):
            if not (area := int(np.count_nonzero(mask))):
                continue
            rle = {"size": list(self._media.size), "counts": encode(mask)}
            row = {
                "id": self._written + 1,
                "image_id": frame.index,
                "category_id": categories.index(self._labels[number]) + 1,
                "object_id": number + 1,
                "segmentation": rle,
                "bbox": coco.toBbox(rle).tolist(),
                "area": area,
                "iscrowd": 0,
                "score": _number(float(frame.scores[number])),
                "presence": _number(float(frame.presence[number])),
            }
            self._annotations.write((b",\n" if self._written else b"\n") + encode_json(json.dumps(row)))
            self._written += 1

    def _draw_places(self, regions: Sequence[Region]) -> None:
        """Draw the boxes and quads that were said in words, over the objects that are drawn already."""
        drawn = len(self._found)
        corners = [_corners(region) for region in regions[drawn:]]
        if not corners:
            return
        path = self._part / "overlay.png"
        image = read_image(open_media(path) if path.exists() else self._media)
        lines = outlines([np.zeros((0, 2))] * drawn + corners, image.shape[:2])
        write_png(path, overlay(image, lines, [region.phrase for region in regions]))

    def _write_overlay(self, frame: FrameMasks) -> None:
        drawn = overlay(frame.image, frame.masks, self._labels)
        if self._media.kind == "image":
            write_png(self._part / "overlay.png", drawn)
            return
        if self._overlay is None:
            writer = OverlayWriter(self._part / "overlay.mp4", self._media.fps or FRAME_RATE, self._media.size)
            self._overlay = self._open.enter_context(writer)
        self._overlay.write(drawn, frame.seconds)


def save(answer: Answer, folder: Path, formats: Iterable[str]) -> None:
    """Write an answer to a folder, which must be new, empty, or hold such a result already.

    Frames are decoded anew for the overlay.

    Raises: ConfigError, if the answer has no medium, a format is unknown or of logits that were not kept, or the folder
    cannot be made or holds something else; MediaError, if its medium cannot be read any more, or a picture not be
    written; OSError, as the disk raises it.
    """
    if answer.media is None:
        raise ConfigError("the answer is not about an image or video; there is nothing to write but its text")
    if isinstance(formats, str):
        raise ConfigError(f"formats are a list, and {formats!r} is text; write [{formats!r}]")
    formats = list(formats)
    if unknown := set(formats) - set(FORMATS):
        raise ConfigError(f"unknown output format {', '.join(sorted(unknown))}; known: {', '.join(FORMATS)}")
    if "logits" in formats and any(one.masks is not None and one.masks.logits is None for one in answer.regions):
        raise ConfigError(
            "the answer was made without its logits; ask with Options(keep_logits=True), or leave logits out of formats"
        )
    blocking = next((path for path in folder.parents if path.exists() and not path.is_dir()), None)
    if blocking is not None or "\0" in str(folder):
        what = "its name holds a NUL character" if blocking is None else f"{blocking} is no folder"
        raise ConfigError(f"the folder {str(folder)!r} cannot be made: {what}; give another one")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and (not folder.is_dir() or names - _WRITTEN or (names and RESULT not in names)):
        raise ConfigError(f"{folder} holds something else; give a new folder")
    with ResultWriter(folder, answer.media, formats) as writer:
        for event in replay(answer):
            writer.write(event)
        writer.finish(answer)


def replay(answer: Answer) -> Iterator[Event]:
    """The events of a finished answer once more, with its frames decoded anew; none if it has no masks."""
    regions = [region for region in answer.regions if region.masks is not None]
    tracks = [region.masks for region in regions if region.masks is not None]
    if not tracks or (media := answer.media) is None:
        return
    yield ObjectsFound(media, tuple(regions))
    positions = {int(index): position for position, index in enumerate(tracks[0].index)}
    for index, seconds, pixels in iter_frames(media, min(positions), stop=max(positions) + 1):
        if (position := positions.get(index)) is not None:
            masks = np.stack([track.dense(position) for track in tracks])
            scores = [np.nan if region.scores is None else region.scores[position] for region in regions]
            presence = [np.nan if region.presence is None else region.presence[position] for region in regions]
            yield FrameMasks(index, seconds, pixels, masks, np.array(scores), np.array(presence))


def describe(answer: Answer, found: Sequence[Found] = ()) -> dict[str, Any]:
    """An answer as JSON can hold it, without its masks.

    Boxes are x0 y0 x1 y1 in pixels, right and bottom exclusive; `scores` and `presence` of a region say per frame.
    `found` tells of the masks of the first regions. `not_found` are phrases for which there is no object, or none that
    is to be seen.
    """
    rows = [_describe_region(number, region) for number, region in enumerate(answer.regions, start=1)]
    for row, one in zip(rows, found, strict=False):  # places in words have no masks
        row |= one.plain()
    unseen = [row["phrase"] for row in rows if row.get("is_found") is False]
    return {
        "text": answer.text,
        "raw_text": answer.raw_text,
        "stop_reason": answer.stop_reason,
        "regions": rows,
        "not_found": [*answer.lineage.get("not_found", ()), *unseen],
        "lineage": answer.lineage,
        "usage": asdict(answer.usage),
    }


def encode_json(text: str) -> bytes:
    """JSON text as UTF-8; bytes of a file name that are no UTF-8 become escapes, from which they can be read again."""
    return text.encode("utf-8", "backslashreplace")


def write_coco(
    path: Path, media: Media, phrases: Iterable[str], seconds: Mapping[int, float | None], annotations: BinaryIO | None
) -> None:
    """Masks as a COCO annotation file, which `pycocotools.coco.COCO` reads.

    Every frame in `seconds` (frame number -> time) is an image whose id is its number; every object has one
    annotation per frame in which it has any pixel, with compressed RLE, bbox as x y width height, area in pixels, and
    `object_id` counting from 1 as in `result.json`; a category is a phrase. `annotations` holds them, frame by frame,
    as JSON with commas between; `None` if there are none.
    """
    height, width = media.size
    images = (
        {"id": index, "file_name": media.name, "height": height, "width": width, "frame_index": index, "seconds": time}
        for index, time in seconds.items()
    )
    categories = ({"id": number, "name": phrase} for number, phrase in enumerate(dict.fromkeys(phrases), start=1))
    with path.open("wb") as file:
        for opening, rows in ((b'{"images": [', images), (b'],\n"categories": [', categories)):
            file.write(opening)
            for number, row in enumerate(rows):
                file.write((b",\n" if number else b"\n") + encode_json(json.dumps(row, ensure_ascii=False)))
        file.write(b'],\n"annotations": [')
        if annotations is not None:
            annotations.seek(0)
            shutil.copyfileobj(annotations, file)
        file.write(b"]}\n")


def _write_logits(path: Path, regions: Sequence[Region]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for number, region in enumerate(regions, start=1):
        if region.masks is not None and region.masks.logits is not None:
            arrays[f"index_{number}"] = region.masks.index
            arrays[f"logits_{number}"] = region.masks.logits
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _describe_region(number: int, region: Region) -> dict[str, Any]:
    return {
        "id": number,
        "phrase": region.phrase,
        "span": region.span,
        "box": None if region.box is None else [_number(side) for side in region.box],
        "quad": None if region.quad is None else [[_number(x), _number(y)] for x, y in region.quad],
        "score": None if region.score is None else _number(region.score),
        "scores": None if region.scores is None else [_number(score) for score in region.scores],
        "presence": None if region.presence is None else [_number(value) for value in region.presence],
    }


def _corners(region: Region) -> Float[np.ndarray, "k 2"]:
    """The corners of a region's quad or box, in order around it."""
    if region.quad is not None:
        return region.quad
    assert region.box is not None, "what was said in words has a place"
    left, top, right, bottom = region.box.tolist()
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _number(value: float) -> float | None:
    """A number as JSON can hold it, to six digits; what is not finite (the time of a frame without a clock) is null."""
    return round(float(value), 6) if isfinite(value) else None


def _readable(result: dict[str, Any]) -> str:
    """JSON for people: indented, with lists of numbers on one line (no string holds a line break in JSON)."""
    number = r"(null|-?[0-9][0-9.e+-]*)"
    numbers = re.compile(rf"\[\n\s+{number}(,\n\s+{number})*\n\s+\]")
    indented = json.dumps(result, ensure_ascii=False, indent=2)
    return numbers.sub(lambda match: "[" + " ".join(match[0][1:-1].split()) + "]", indented) + "\n"
