"""Pascal VOC's segmentation: `SegmentationClass/a.png` for each `JPEGImages/a.jpg`.

    ImageSets/Segmentation/train.txt       the images of a split, a line each, without ending
    labelmap.txt                           name:red,green,blue:parts:actions, as CVAT exports; else VOC's twenty classes

A colour, or a place in the palette of a mask, is a class; black is nothing, and the outline (224, 224, 192), place
255, is passed over. Boxes in Annotations/ are no masks and are not looked at. What a thing is called is its class.

Source: the VOC 2012 development kit, and CVAT's documentation of this export.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from segue.data import shapes
from segue.errors import DataError
from segue.media.folder import composed
from segue.media.formats import IMAGE_SUFFIXES
from segue.media.image import stored
from segue.own_data.formats.entries import Drawn, Entry, Remark, Thing, merged, read_masks, split_named
from segue.own_data.formats.marked import files_below, place_of
from segue.reading import read_text
from segue.types import Media

log = logging.getLogger(__name__)

NAME, FOLDER, MEDIA = "Pascal VOC", "SegmentationClass", "JPEGImages"
_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
_NOTHING = ("background", "ignored", "void")
_OUTLINE = (224, 224, 192)


@dataclass(frozen=True, slots=True)
class ClassMask:
    """A mask picture, and the class of each colour in it, as red * 65536 + green * 256 + blue."""

    path: Path
    classes: Mapping[int, str]


def recognises(base: Path) -> bool:
    """Whether a folder is laid out like this."""
    return (base / "SegmentationClass").is_dir() and (base / "JPEGImages").is_dir()


def entries(base: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per mask picture; images without one are left out.

    Raises: DataError, if `labelmap.txt` or a list cannot be read.
    """
    pictures, marked = base / "JPEGImages", base / "SegmentationClass"
    shown = (path for path in files_below(pictures) if path.suffix.lower() in IMAGE_SUFFIXES)
    images = {place_of(path, pictures): path.relative_to(pictures).as_posix() for path in shown}
    masks = {place_of(path, marked): path for path in files_below(marked, ".png")}
    classes, listed = _classes(base / "labelmap.txt"), _splits(base / "ImageSets" / "Segmentation")
    for name in sorted(images.keys() - masks.keys()):
        remarks.append(Remark("left_out", f"JPEGImages/{images[name]}", "it has no mask in SegmentationClass"))
    if len(masks) < len(images):
        log.warning("%s: %d of %d images have no mask and are left out", base, len(images) - len(masks), len(images))
    return [
        Entry((images.get(name, f"{name}.jpg"),), ClassMask(path, classes), split=listed.get(name, ""))
        for name, path in masks.items()
    ]


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The classes that are seen on an image.

    Raises: DataError, if the mask cannot be read, or has a colour that is no class.
    """
    return merged(read_masks(objects(entry, media, frames)), media, frames)


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The classes that are seen on an image."""
    record: ClassMask = entry.record
    colours = _colours(record.path, media.size)
    seen = [int(colour) for colour in np.unique(colours) if colour not in (0, _packed(_OUTLINE))]
    for number, colour in enumerate(seen):
        name = record.classes.get(colour)
        if name is None:
            told = ", ".join(map(str, _unpacked(colour)))
            raise DataError(f"{record.path.name} has the colour {told}, which is no class; name it in labelmap.txt")
        if name not in _NOTHING:
            counts = partial(shapes.value_mask, colours, [colour])
            yield Drawn(number, f"object {number} ({name!r})", name, 0, counts)


def _colours(path: Path, size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """The colours of a mask as single numbers; a place in a palette stands for VOC's colour of it."""
    values, is_lossy = stored(path)
    if is_lossy or values.shape[:2] != size or values.dtype != np.uint8:
        raise DataError(
            f"the mask {path.name} is no PNG of 8 bits of {size[1]}x{size[0]} pixels like its image; export it again"
        )
    if values.ndim == 2:
        table = np.array([_packed(_colour_at(place)) for place in range(256)])
        return table[values]
    return values[..., :3].astype(np.int64) @ np.array([65536, 256, 1])


def _colour_at(place: int) -> tuple[int, int, int]:
    """VOC's colour of a place in the palette: its bits, dealt out to red, green and blue from the highest on."""
    red, green, blue = (
        sum(((place >> (3 * step + channel)) & 1) << (7 - step) for step in range(3)) for channel in range(3)
    )
    return red, green, blue


def _packed(colour: Sequence[int]) -> int:
    red, green, blue = colour
    return red * 65536 + green * 256 + blue


def _unpacked(colour: int) -> tuple[int, int, int]:
    return colour >> 16, colour >> 8 & 255, colour & 255


def _classes(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {_packed(_colour_at(place)): name for place, name in enumerate(_CLASSES)}
    found = {}
    for line in _lines(path):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            found[_packed([int(number) for number in rest.partition(":")[0].split(",")])] = name
        except ValueError as error:
            raise DataError(f"{path} has the line {line[:60]!r}; expected name:red,green,blue:parts:actions") from error
    return found


def _splits(folder: Path) -> dict[str, str]:
    """The split of each image that a list names; `trainval` says none."""
    lists = {split: path for path in sorted(folder.glob("*.txt")) if (split := split_named(path.stem))}
    return {composed(line.strip().strip('"')): split for split, path in lists.items() for line in _lines(path)}


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
