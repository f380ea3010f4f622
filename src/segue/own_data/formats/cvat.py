"""CVAT's own XML (1.1), for images and for videos.

    <annotations> <image name width height [subset]> <polygon label points="x,y;x,y;..."/> <mask label rle left .../>
    <annotations> <meta> ... <source>clip.mp4</source> </meta> <track label> <polygon frame outside points/> <mask .../>

What a shape is called is its attribute `text` or `caption`, if it has one, else its label. Shapes of one name are one
thing. Boxes, lines and points are no masks: they are counted and left out, and so are images without a mask. Of a
video, the frames count as annotated that some track names; a track is not there where it is `outside`. CVAT writes
every frame between key frames, by its number in the video, which the pictures that it exports have in their names; its
run lengths go along the rows of the box at left and top.

Source: CVAT's documentation of its formats "CVAT for images 1.1" and "CVAT for video 1.1".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from segue.data import shapes
from segue.data.annotation_io import size_of
from segue.errors import DataError, MediaError
from segue.media.folder import frame_files
from segue.media.formats import VIDEO_SUFFIXES
from segue.own_data.finding import locate
from segue.own_data.formats.entries import Drawn, Entry, Remark, Thing, merged, read_masks, stated_split
from segue.reading import decoded, parse_xml, read_bytes
from segue.types import Media

log = logging.getLogger(__name__)

NAME = "CVAT"

Shape = tuple[str, int, dict[str, str]]
"""A name, a frame number, and the attributes of a polygon or mask element."""

_DECLARED = 4096
"""Bytes at the beginning within which XML states what it is."""
_FRAME = re.compile(r"frame_([0-9]{6,})")
"""How CVAT names the pictures that it exports of a video."""
_OTHERS = ("box", "polyline", "points", "ellipse", "cuboid", "skeleton")


def read(path: Path) -> ElementTree.Element | None:
    """The root of a CVAT file, or None if it is other XML.

    Raises: DataError, if it is no XML.
    """
    try:
        root = parse_xml(_text(read_bytes(path)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError) as error:
        raise DataError(f"{path} cannot be read as XML: {error}; export it again") from error
    return root if root.tag == "annotations" else None


def _text(data: bytes) -> str:
    """XML in the encoding that it states, without that statement, or in the one that it is found in."""
    stated = re.match(rb"""\s*<\?xml[^>]*encoding=["']([A-Za-z0-9._-]+)["'][^>]*\?>""", data[:_DECLARED])
    text = data.decode(stated[1].decode("ascii")) if stated else decoded(data)[0]
    return re.sub(r"^\s*<\?xml[^>]*\?>", "", text)


def entries(content: ElementTree.Element, path: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per image with a mask, or one for the video.

    Raises: DataError, if an element lacks what the format says it has.
    """
    ignored = sum(1 for kind in _OTHERS for _ in content.iter(kind))
    if ignored:
        log.warning("%s: %d boxes, lines or points are no masks and are left out", path, ignored)
    try:
        found = [_image(image) for image in content.iter("image")]
        if content.find("track") is not None:
            found.append(_video(content, path))
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path} is no CVAT file of version 1.1: {error} is missing or wrong; export it again"
        ) from error
    marked = [entry for entry in found if entry.record]
    for entry in found:
        if not entry.record:
            remarks.append(Remark("left_out", path.name, f"{entry.names[0]} has no mask"))
    if len(marked) < len(found):
        log.warning("%s: %d of %d images have no mask and are left out", path, len(found) - len(marked), len(found))
    return marked


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The things that are to be seen on the frames.

    Raises: DataError, if a shape is wrong or empty.
    """
    return merged(read_masks(objects(entry, media, frames)), media, frames)


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The objects that are to be seen on the frames."""
    for number, (name, frame, attributes) in enumerate(entry.record):
        if frame in frames:
            counts = partial(_mask, attributes, media.size)
            yield Drawn(number, f"{name!r} on frame {frame}", name, frame, counts, _outlines(attributes))


def _image(image: ElementTree.Element) -> Entry:
    record = [(_name(shape, image), 0, dict(shape.attrib)) for shape in image if shape.tag in ("polygon", "mask")]
    size = size_of(int(image.attrib["height"]), int(image.attrib["width"]))
    return Entry(
        (image.attrib["name"],), record, size, split=stated_split(image.get("subset", ""), image.attrib["name"])
    )


def _video(root: ElementTree.Element, path: Path) -> Entry:
    sources = {source.text.strip() for source in root.iter("source") if source.text}
    is_of_video = bool(sources)
    if not sources:
        sources = _lying_near(path)
    if len(sources) != 1:
        told = f"speaks of {len(sources)} videos ({', '.join(sorted(sources))})" if sources else "names no video"
        raise DataError(
            f"{path.name} {told}, as of a task of pictures; export one task a file, and write which video or folder of "
            "frames it is about into its <meta>: <source>clip.mp4</source>"
        )
    (source,) = sources
    exported = {"images"} & _lying_near(path)  # where CVAT writes the frames of a video
    names = (source, PurePosixPath(source).stem, *exported)
    places = _places(path, names) if is_of_video else {}
    record: list[Shape] = []
    frames: set[int] = set()
    for track in root.iter("track"):
        for shape in track:
            if shape.tag in ("polygon", "mask"):
                frame = _place(int(shape.attrib["frame"]), places, path)
                frames.add(frame)
                if shape.get("outside") != "1":
                    record.append((_name(shape, track), frame, dict(shape.attrib)))
    drawn_on = root.find(".//original_size")
    size = None
    if drawn_on is not None:
        size = size_of(int(drawn_on.findtext("height", "")), int(drawn_on.findtext("width", "")))
    return Entry(names, record, size, tuple(sorted(frames)))


def _places(path: Path, names: Sequence[str]) -> dict[int, int]:
    """The places of a video's frames in the folder of its pictures, by the numbers that CVAT gave them as names.

    A task may begin late in its video, or take every fifth frame: its first picture is then frame_000300. Empty where
    the frames lie in a video, or are named otherwise and so count by their place.
    """
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    try:
        place = locate([base, base / "images", base / "videos", base / "data", path.parent], *names)
        numbers = [_FRAME.fullmatch(file.stem) for file in frame_files(place)] if place.is_dir() else []
    except MediaError:  # told where the row is opened
        return {}
    return {int(number[1]): at for at, number in enumerate(numbers) if number}


def _place(frame: int, places: Mapping[int, int], path: Path) -> int:
    if places and frame not in places:
        raise DataError(
            f"{path.name} speaks of frame {frame}, and the pictures of its video have no frame_{frame:06}; export them "
            "with the annotations again"
        )
    return places.get(frame, frame)


def _lying_near(path: Path) -> set[str]:
    """The one video, or folder of frames, that lies where videos lie."""
    for place in (path.parent / "videos", path.parent.parent / "videos", path.parent / "images", path.parent):
        if place.is_dir():
            videos = {one.name for one in place.iterdir() if one.suffix.lower() in VIDEO_SUFFIXES}
            folders = {one.name for one in place.iterdir() if one.is_dir() and _holds_frames(one)}
            if (
                found := videos
                or folders
                or ({place.name} if place.name == "images" and _holds_frames(place) else set())
            ):
                return found
    return set()


def _holds_frames(folder: Path) -> bool:
    try:
        return folder.name not in ("annotations", "videos") and bool(frame_files(folder))
    except MediaError:
        return False


def _name(shape: ElementTree.Element, owner: ElementTree.Element) -> str:
    for attribute in (*shape.iter("attribute"), *owner.findall("attribute")):
        if attribute.get("name") in ("text", "caption") and (attribute.text or "").strip():
            return str(attribute.text)
    return str(shape.get("label") or owner.attrib["label"])


def _mask(attributes: dict[str, str], size: tuple[int, int]) -> str:
    try:
        if "points" in attributes:
            return shapes.polygons_mask([_points(attributes["points"])], size)
        left, top, width, height = (int(attributes[side]) for side in ("left", "top", "width", "height"))
        runs = [int(run) for run in attributes["rle"].split(",")]
    except (KeyError, ValueError) as error:
        raise DataError(f"a CVAT shape is damaged: {error}; export it again") from error
    counts = shapes.rows_mask(runs, (left, top, width, height), size)
    if shapes.is_empty(counts, size):
        raise shapes.EmptyMaskError("a mask is empty; take it out or draw it")
    return counts


def _points(text: str) -> list[float]:
    return [float(number) for pair in text.split(";") for number in pair.split(",")]


def _outlines(attributes: dict[str, str]) -> list[list[float]] | None:
    """The one polygon of a shape that is one, if it can be read."""
    try:
        return [_points(attributes["points"])]
    except (KeyError, ValueError):
        return None
