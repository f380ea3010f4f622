"""Pascal VOC's segmentation: `SegmentationClass/a.png` for each `JPEGImages/a.jpg`.

    ImageSets/Segmentation/train.txt       the images of a split, a line each, usually without ending
    labelmap.txt                           name:red,green,blue:parts:actions, as CVAT exports
    class_names.txt                        a name a line, the first of place 0, as labelme2voc writes; or labels.txt
    SegmentationClassPNG/                  the masks, where labelme2voc has put arrays into SegmentationClass/

Without these the classes are VOC's twenty. With labelmap.txt a colour that a mask shows is a class; else a place in its
palette, for which VOC's colour of it may stand. Grey levels are places. Black is nothing, and the outline (224, 224,
192), place 255, is passed over. Boxes in Annotations/ are no masks and are not looked at. What a thing is called is its
class.

Source: the VOC 2012 development kit, CVAT's documentation of this export, and LabelMe's examples.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int

from segue.data import shapes
from segue.errors import DataError
from segue.media.folder import composed
from segue.media.formats import IMAGE_SUFFIXES
from segue.media.image import stored
from segue.own_data.formats.entries import SPLITS, Drawn, Entry, Remark, Thing, merged, read_masks, split_named
from segue.own_data.formats.marked import files_below, place_of
from segue.reading import read_text
from segue.types import Media

log = logging.getLogger(__name__)

NAME, FOLDER, MEDIA = "Pascal VOC", "SegmentationClass", "JPEGImages"
_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
_NOTHING = ("background", "_background_", "__ignore__", "ignored", "void")
_COLOURS, _NAMES = "labelmap.txt", ("class_names.txt", "class-names.txt", "labels.txt")
_LISTS = "ImageSets/Segmentation"
_BEFORE = "__ignore__"
"""What stands for place -1 in a list of names."""
_OUTLINE = (224, 224, 192)


@dataclass(frozen=True, slots=True)
class ClassMask:
    """A mask picture, and the class of each colour in it, as red * 65536 + green * 256 + blue.

    `told` is the file that names the classes, "" where they are VOC's.
    """

    path: Path
    classes: Mapping[int, str]
    told: str


def recognises(base: Path) -> bool:
    """Whether a folder is laid out like this."""
    return (base / "SegmentationClass").is_dir() and (base / "JPEGImages").is_dir()


def entries(base: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per mask picture; images without one are left out.

    Raises: DataError, if the names of the classes or a list cannot be read.
    """
    pictures, marked = base / "JPEGImages", _marked(base)
    shown = (path for path in files_below(pictures) if path.suffix.lower() in IMAGE_SUFFIXES)
    images = {place_of(path, pictures): path.relative_to(pictures).as_posix() for path in shown}
    masks = {place_of(path, marked): path for path in files_below(marked, ".png")}
    told = next((name for name in (_COLOURS, *_NAMES) if (base / name).is_file()), "")
    classes, listed = _classes(base, told), _splits(base / _LISTS, images.keys() | masks.keys(), remarks)
    if told in _NAMES and classes.get(0, "background") not in _NOTHING:
        text = f"its first line, {classes[0]!r}, names place 0, which is nothing; the first line is for the background"
        remarks.append(Remark("unsure_mask", told, text))
    for name in sorted(images.keys() - masks.keys()):
        remarks.append(Remark("left_out", f"JPEGImages/{images[name]}", f"it has no mask in {marked.name}"))
    for name in sorted(listed.keys() - masks.keys() - images.keys()):
        remarks.append(Remark("left_out", f"{_LISTS}, {listed[name]}", f"there is no image {name!r}"))
    if len(masks) < len(images):
        log.warning("%s: %d of %d images have no mask and are left out", base, len(images) - len(masks), len(images))
    return [
        Entry((images.get(name, f"{name}.jpg"),), ClassMask(path, classes, told), split=listed.get(name, ""))
        for name, path in masks.items()
    ]


def _marked(base: Path) -> Path:
    """Where the mask pictures lie: labelme2voc also writes arrays, for which older ones take the usual folder."""
    usual, other = base / FOLDER, base / f"{FOLDER}PNG"
    return other if other.is_dir() and not any(files_below(usual, ".png")) else usual


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The classes that are seen on an image.

    Raises: DataError, if the mask cannot be read, or has a colour that is no class.
    """
    return merged(read_masks(objects(entry, media, frames)), media, frames)


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The classes that are seen on an image."""
    record: ClassMask = entry.record
    colours, note = _colours(record, media.size)
    seen = [int(colour) for colour in np.unique(colours) if colour not in (0, _packed(_OUTLINE))]
    for number, colour in enumerate(seen):
        name = record.classes.get(colour)
        if name is None:
            told = ", ".join(map(str, _unpacked(colour)))
            raise DataError(
                f"{record.path.name} has the colour {told}, which is no class; name it in {record.told or _COLOURS}"
            )
        if name not in _NOTHING:
            counts = partial(shapes.value_mask, colours, [colour])
            yield Drawn(number, f"object {number} ({name!r})", name, 0, counts, note=note)
            note = ""  # of the picture, so once


def _colours(record: ClassMask, size: tuple[int, int]) -> tuple[Int[np.ndarray, "h w"], str]:
    """The colours of a mask as single numbers, and what is to be said of them.

    A place in a palette stands for the colour that it shows if `labelmap.txt` names colours, else for VOC's colour of
    it.
    """
    values, is_lossy, palette, _ = stored(record.path)
    if is_lossy or values.shape[:2] != size or values.dtype != np.uint8:
        raise DataError(
            f"the mask {record.path.name} is no PNG of 8 bits of {size[1]}x{size[0]} pixels like its image; export it "
            "again"
        )
    if values.ndim == 3:
        return values[..., :3].astype(np.int64) @ np.array([65536, 256, 1]), ""
    table = np.array([_packed(_colour_at(place)) for place in range(256)])
    if palette is None or record.told in _NAMES:
        return table[values], ""
    used = np.unique(values)
    shown = np.zeros(256, np.int64)
    shown[: len(palette)] = palette.astype(np.int64) @ np.array([65536, 256, 1])
    if (shown[used] == table[used]).all():
        return table[values], ""
    known = {*record.classes, 0, _packed(_OUTLINE)}
    if record.told and len(set(shown[used].tolist()) & known) == len(used):
        return shown[values], ""
    why = f"is not VOC's, and {_COLOURS} does not name all its colours" if record.told else "is not VOC's"
    note = f"the palette of {record.path.name} {why}; its places are taken for VOC's: name its colours in {_COLOURS}"
    return table[values], note


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


def _classes(base: Path, told: str) -> dict[int, str]:
    """The class of each colour, as the file `told` names them."""
    if told != _COLOURS:
        names = [line.strip() for line in _text(base / told).splitlines()] if told else list(_CLASSES)
        names = names[1:] if names[:1] == [_BEFORE] else names
        return {_packed(_colour_at(place)): name for place, name in enumerate(names[:256]) if name}
    path, found = base / told, {}
    for line in _lines(path):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            found[_packed([int(number) for number in rest.partition(":")[0].split(",")])] = name
        except ValueError as error:
            raise DataError(f"{path} has the line {line[:60]!r}; expected name:red,green,blue:parts:actions") from error
    return found


def _splits(folder: Path, known: Collection[str], remarks: list[Remark]) -> dict[str, str]:
    """The split of each image that a list names; `trainval` says none. What several lists name is kept apart."""
    lists = {split: path for path in sorted(folder.glob("*.txt")) if (split := split_named(path.stem))}
    found: dict[str, str] = {}
    for split in (split for split in SPLITS if split in lists):
        for name in (_named(line, known) for line in _lines(lists[split])):
            if found.get(name, split) != split:
                text = f"{name} is in the lists of {found[name]} and {split}; it is taken for {split}"
                remarks.append(Remark("several_splits", _LISTS, text))
            found[name] = split
    return found


def _named(line: str, known: Collection[str]) -> str:
    """The image that a line of a list names: also with an ending or folders, or with its mask or a number behind it."""
    whole = composed(line.strip().strip('"'))
    for name in (whole, *whole.split()[:1]):
        path = PurePosixPath(name.replace("\\", "/"))
        bare = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
        for ending in ("/".join(bare.parts[start:]) for start in range(len(bare.parts))):
            if ending in known:
                return ending
    return whole


def _lines(path: Path) -> list[str]:
    return [line for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
