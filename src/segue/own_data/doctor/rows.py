"""One row looked at: its file, its image, each object and each polygon, and last whether a sample comes of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from segue.data import shapes
from segue.data.annotation_io import MissingFileError, checked_format
from segue.data.prompts import clean_phrase
from segue.errors import DataError, LimitError, MediaError, SegueError
from segue.geometry.masks import MAX_PIXELS
from segue.media import iter_frames, open_media, read_frames
from segue.media.formats import IMAGE_SUFFIXES
from segue.own_data import folder
from segue.own_data.doctor.findings import Finding
from segue.own_data.finding import locate
from segue.own_data.folder import Row
from segue.own_data.formats.entries import CountMismatchError, Drawn, UnmarkedError
from segue.types import Media

Size = tuple[int, int]

TRAINED_AT = 256
"""Side of the square, in pixels, at which masks are compared while a model learns."""
LOST = 1 / 3
"""Share of a mask's pixels that may be lost at that size before it is told."""
_INVERTED = 0.5
"""Share of an image from which on a mask that covers its corners may be what is around the thing."""

_KINDS: dict[type[SegueError], str] = {
    shapes.TooFewPointsError: "few_points",
    shapes.BadCoordinateError: "bad_coordinate",
    shapes.OutsideImageError: "outside",
    shapes.EmptyMaskError: "empty_mask",
    shapes.OtherSizeError: "other_size",
    CountMismatchError: "count_mismatch",
    UnmarkedError: "no_object",
    MissingFileError: "missing_file",
    MediaError: "unreadable_file",
    LimitError: "unreadable_file",
}
_EXPECTED = {
    "few_points": "6 numbers or more, an even count",
    "bad_coordinate": "finite numbers x0, y0, x1, y1, ...",
    "outside": "coordinates inside the image",
    "empty_mask": "at least one pixel",
    "other_size": "the image's size",
    "count_mismatch": "one mask for each text",
    "no_object": "at least one object",
    "unreadable_file": "a whole image or video within the limits",
    "missing_file": "a file",
    "bad_mask": "polygons, run lengths or a mask picture",
    "unusable": "a sample",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a row once it was looked at.

    `digest` stands for the bytes of its file, "" where there is none. `size` is the image's. `reach` is how far the
    row's polygons go, least x, least y, greatest x, greatest y, as shares of the image's sides; None without polygons
    or where the annotation states the size. `texts` are its objects' words.
    """

    findings: tuple[Finding, ...]
    digest: str = ""
    size: Size | None = None
    reach: tuple[float, float, float, float] | None = None
    texts: frozenset[str] = frozenset()
    objects: int = 0


def look(number: int, row: Row, split: str) -> Seen:
    """Look at a row as a whole; nothing that is wrong with it is raised."""
    name = row.entry.names[0]
    try:
        path = locate(row.folders, *row.entry.names)
    except MediaError as error:
        return Seen((_told("missing_file", error, number, name, split),))
    try:
        digest = _digest(path)
        media = open_media(path)
        frames = [frame for frame in annotated(row) if frame < media.count]
        for _ in decoded(media, frames):
            pass
    except (MediaError, LimitError, OSError) as error:
        return Seen((_told("unreadable_file", error, number, name, split),))
    findings: list[Finding] = []
    notes = [*media.notes, *_first_of_several(row, path, media)]
    findings += [Finding("media_note", number, name, note, "", split) for note in notes]
    if row.entry.size not in (None, media.size):
        findings.append(_stated(row, media, number, split))
    drawn, fault = listed(row, on_annotated(row, media), frames)
    for one in drawn:
        findings += [replace(made, row=number, file=name, split=split) for made in object_findings(one, row, media)]
    if fault is not None:
        findings.append(_told(kind_of(fault), fault, number, name, split))
    findings += _same_texts(drawn, number, name, split)
    if not any(finding.severity == "error" for finding in findings):
        try:
            folder.sample(row)
        except SegueError as error:
            findings.append(_told(_final_kind(error), error, number, name, split))
    texts = frozenset(text for one in drawn if (text := _clean(one.phrase)))
    return Seen(tuple(findings), digest, media.size, _reach(row, drawn, media.size), texts, len(drawn))


def _first_of_several(row: Row, path: Path, media: Media) -> Iterator[str]:
    """What is to be said of an animation or a TIFF of several pages that is annotated as one image."""
    if media.count > 1 and path.suffix.lower() in IMAGE_SUFFIXES and annotated(row) == [0]:
        yield f"it holds {media.count} pictures, of which the first alone is annotated and used"


def annotated(row: Row) -> list[int]:
    """The annotated frame numbers of a row."""
    return list(row.entry.frames) or [0]


def decoded(media: Media, frames: Sequence[int]) -> Iterator[Any]:
    """The pixels of these frames, ascending, one at a time."""
    if media.kind == "image":
        yield from (pixels for _, _, pixels in iter_frames(media))
        return
    for start in range(0, len(frames), 16):
        yield from read_frames(media, frames[start : start + 16]).pixels


def on_annotated(row: Row, media: Media) -> Media:
    """The medium at the size that the row was annotated at, if that is another; a size beyond all is not."""
    stated = row.entry.size
    if folder.is_turned(row, media):
        return media
    return replace(media, size=stated) if stated and math.prod(stated) <= MAX_PIXELS else media


def listed(row: Row, media: Media, frames: Sequence[int]) -> tuple[list[Drawn], SegueError | None]:
    """The objects of a row as far as they can be told, and what stops it there, if something does."""
    drawn: list[Drawn] = []
    try:
        with checked_format("its annotation"):
            drawn.extend(row.objects(row.entry, media, frames))
    except SegueError as error:
        return drawn, error
    return drawn, None


def object_findings(one: Drawn, row: Row, media: Media) -> Iterator[Finding]:
    """What is wrong with an object; row, file and split are left open."""
    blank = Finding("bad_mask", None, "", "", "", object=one.number, text=str(one.phrase)[:80])
    if _clean(one.phrase) is None:
        yield replace(blank, kind="no_text", value=repr(one.phrase)[:60], expected="a few words")
    if one.note:
        yield replace(blank, kind="unsure_mask", value=one.note)
    size = on_annotated(row, media).size
    faults = list(polygon_faults(one, size))
    if not faults:
        try:
            with checked_format("its mask"):
                counts = one.counts()
            is_told = media.kind == "video" or not shapes.is_empty(counts, size)
            faults = [] if is_told or row.empty_is_absent else [_EMPTY]
            if not is_told and row.empty_is_absent:
                yield replace(blank, kind="absent", value="the mask is all black", expected="a mark, if it is there")
            mask = _dense(counts, size)
            if mask[:: max(size[0] - 1, 1), :: max(size[1] - 1, 1)].all() and mask.mean() > _INVERTED:
                value = f"it covers all corners and {mask.mean():.0%} of the image"
                yield replace(blank, kind="inverted", value=value, expected="the thing, and not what is around it")
            if not faults and (lost := lost_share(mask)) > LOST:
                share = "all of it" if lost == 1 else f"{lost:.0%} of its pixels"
                yield replace(blank, kind="thin_mask", value=f"{share} lost", expected=f"at most {LOST:.0%}")
        except SegueError as error:
            faults = [error]
    for fault in faults:
        kind = kind_of(fault)
        yield replace(blank, kind=kind, value=str(fault), expected=_EXPECTED.get(kind, ""))


def polygon_faults(one: Drawn, size: Size) -> Iterator[SegueError]:
    """What is wrong with each polygon of an object; that one alone covers nothing is nothing wrong."""
    polygons = one.polygons if isinstance(one.polygons, list) else []
    try:
        shapes.check_amount(polygons)
    except SegueError as error:
        yield error
        return
    for polygon in polygons:
        try:
            with checked_format("a polygon"):
                shapes.polygons_mask([polygon], size, drawn_on=one.drawn_on)
        except shapes.EmptyMaskError:
            continue
        except SegueError as error:
            yield error


def kind_of(error: SegueError) -> str:
    """The kind of finding that an error of an annotation is."""
    return next((kind for known, kind in _KINDS.items() if isinstance(error, known)), "bad_mask")


def lost_share(mask: Bool[np.ndarray, "h w"]) -> float:
    """Share of a mask's pixels for which nothing stands when it is brought to `TRAINED_AT`; 1 is all of them.

    Training takes one pixel of a few there and drops the others. A pixel is lost if the nearest of those taken is not
    in the mask. An image that is no larger loses nothing.
    """
    rows, columns = (_taken(side) for side in mask.shape)
    kept = int(np.count_nonzero(mask & mask[rows][:, columns]))
    return 1 - kept / max(int(np.count_nonzero(mask)), 1)


def _taken(side: int) -> Int[np.ndarray, " side"]:
    """For each place along a side, the nearest of those places whose values are taken at `TRAINED_AT`."""
    taken = np.arange(TRAINED_AT) * side // TRAINED_AT
    places = np.arange(side)
    after = np.searchsorted(taken, places).clip(max=TRAINED_AT - 1)
    before = (after - 1).clip(min=0)
    nearest: np.ndarray = np.where(taken[after] - places < places - taken[before], taken[after], taken[before])
    return np.where(taken[after] == places, places, nearest)


_EMPTY = shapes.EmptyMaskError("the mask has no pixel")


def _dense(counts: str, size: Size) -> Bool[np.ndarray, "h w"]:
    return shapes.track([counts], [0], size).dense(0)


def _clean(phrase: object) -> str | None:
    try:
        return clean_phrase(phrase) if isinstance(phrase, str) else None
    except DataError:
        return None


def _final_kind(error: SegueError) -> str:
    kind = kind_of(error)
    return "unusable" if kind == "bad_mask" else kind


def _told(kind: str, error: Exception, number: int, name: str, split: str) -> Finding:
    return Finding(kind, number, name, str(error), _EXPECTED.get(kind, ""), split)


def _stated(row: Row, media: Media, number: int, split: str) -> Finding:
    stated, (height, width) = row.entry.size or media.size, media.size
    name = row.entry.names[0]
    if stated == (width, height):
        value = f"annotated at {stated[1]}x{stated[0]}, which is the image's {width}x{height} before EXIF turned it"
        if folder.is_turned(row, media):
            return Finding(
                "turned_size", number, name, f"{value}; what is drawn fits the image as it is shown", "", split
            )
        return Finding("other_size", number, name, value, "the image as it is shown: --fix turns what is drawn", split)
    across, down = width / stated[1], height / stated[0]
    scale = f"{across:.4g}" if abs(across - down) * max(stated) <= 1 else f"{across:.4g} across and {down:.4g} down"
    value = f"annotated at {stated[1]}x{stated[0]}"
    expected = f"the image's {width}x{height}: scale by {scale}"
    return Finding("other_size", number, row.entry.names[0], value, expected, split)


def _same_texts(drawn: Sequence[Drawn], number: int, name: str, split: str) -> Iterator[Finding]:
    """Objects of one frame that are called the same."""
    by_text: dict[tuple[int, str], list[int]] = {}
    for one in drawn:
        if text := _clean(one.phrase):
            by_text.setdefault((one.frame, text), []).append(one.number)
    for (_, text), places in by_text.items():
        if len(places) > 1:
            value = f"{len(places)} objects: {', '.join(map(str, places[:8]))}{' ...' if len(places) > 8 else ''}"
            yield Finding("same_text", number, name, value, "one object a text", split, places[0], text)


def _reach(row: Row, drawn: Sequence[Drawn], size: Size) -> tuple[float, float, float, float] | None:
    points = [points for one in drawn for points in outlines(one) if one.drawn_on is None]
    if not points or row.entry.size is not None:
        return None
    shares = np.concatenate(points) / (size[1], size[0])
    low, high = shares.min(axis=0), shares.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def outlines(one: Drawn) -> Iterator[Float[np.ndarray, "n 2"]]:
    """The polygons of an object that have three finite points or more, as x and y on the image they were drawn on."""
    for polygon in one.polygons if isinstance(one.polygons, list) else ():
        if isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0:
            try:
                points = np.asarray(polygon, np.float64)
            except (TypeError, ValueError, OverflowError):
                continue
            if points.ndim == 1 and np.isfinite(points).all():
                yield points.reshape(-1, 2)


def _digest(path: Path) -> str:
    """Stands for the bytes of a file, or of all pictures of a folder in order."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in (file for file in files if file.is_file()):
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                whole.update(piece)
    return whole.hexdigest()
