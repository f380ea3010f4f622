"""YOLO's segmentation labels (Ultralytics, Roboflow): `labels/a.txt` for each `images/a.jpg`.

    0 0.1 0.2 0.4 0.2 0.4 0.6              the class by its number, and a polygon in shares of width and height
    names: {0: vessel, 1: cup}             in data.yaml, here or above; or a line for each in classes.txt

Lines of five numbers are boxes, which are no masks: they are counted and left out, and so are images without a polygon.
So is every line where data.yaml has `kpt_shape`, for then key points follow a box. A name is what is written, even if
YAML takes it for something else (yes, 1.0). Where data.yaml names lists or folders of images for its splits, they say
the splits.

Source: Ultralytics' documentation of its formats.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os.path import normpath
from pathlib import Path, PurePosixPath

import yaml

from segue import config
from segue.errors import ConfigError, DataError
from segue.media.folder import composed, is_hidden
from segue.media.formats import IMAGE_SUFFIXES
from segue.own_data.formats.entries import SPLITS, Entry, Remark
from segue.own_data.formats.marked import Shape, files_below, objects, place_of, things
from segue.reading import read_text

log = logging.getLogger(__name__)

__all__ = ["FOLDER", "MEDIA", "NAME", "entries", "objects", "recognises", "things"]

NAME, FOLDER, MEDIA = "YOLO", "labels", "images"
_BOX = 5  # numbers of a line that is a box
_LISTS = ("classes.txt", "obj.names")


def recognises(base: Path) -> bool:
    """Whether a folder is laid out like this."""
    if not ((base / "labels").is_dir() and (base / "images").is_dir()):
        return False
    return any(path.name not in _LISTS for path in files_below(base / "labels", ".txt"))


def entries(base: Path, remarks: list[Remark]) -> list[Entry]:
    """One entry per image with a polygon; lines that are neither polygon nor box are refused.

    Raises: DataError, if nothing names the classes, or a file cannot be read.
    """
    names, listed, has_points = _described(base)
    images = [path for path in files_below(base / "images") if path.suffix.lower() in IMAGE_SUFFIXES]
    found, boxes = [], 0
    labels = {place_of(path, base / "labels"): path for path in files_below(base / "labels", ".txt")}
    for image in images:
        name, place = image.relative_to(base / "images"), place_of(image, base / "images")
        label = labels.get(place)
        record, others = _read(label, names, remarks, has_points=has_points) if label else ([], 0)
        boxes += others
        if record:
            found.append(Entry((name.as_posix(),), record, split=listed.get(place, "")))
        else:
            remarks.append(Remark("left_out", f"labels/{name.with_suffix('.txt')}", f"{name} has no polygon"))
    places = {place_of(image, base / "images") for image in images}
    for path in (path for place, path in labels.items() if place not in places and path.name not in _LISTS):
        remarks.append(Remark("passed_over", str(path.relative_to(base)), "there is no image of that name"))
    if boxes or len(found) < len(images):
        log.warning(
            "%s: %d boxes are no masks, and %d of %d images have none; they are left out",
            base,
            boxes,
            len(images) - len(found),
            len(images),
        )
    return found


def _read(label: Path, names: Mapping[int, str], remarks: list[Remark], *, has_points: bool) -> tuple[list[Shape], int]:
    """The polygons of a file, and how many boxes it has; with `has_points` each line is a box and its key points."""
    found, boxes = [], 0
    for number, line in enumerate(_text(label).splitlines(), start=1):
        try:
            kind, *values = [float(word) for word in line.split()] or [0.0]
            if kind % 1:
                raise ValueError(f"its class is {kind:g}, no whole number")
            if len(values) + 1 == _BOX or (values and has_points):
                boxes += 1
            elif values:
                found.append(Shape(names[int(kind)], [values], is_share=True))
        except (ValueError, KeyError, OverflowError) as error:
            told = f"no class {error} is named" if isinstance(error, KeyError) else str(error)
            remarks.append(Remark("refused", label.name, f"{label}, line {number}: {told}; correct or remove the line"))
    return found, boxes


def _described(base: Path) -> tuple[dict[int, str], dict[str, str], bool]:
    """The names of the classes, the split of each image that data.yaml tells, by its place below images/, and whether
    it tells of key points.

    Raises: DataError, if nothing names the classes, or not by numbers.
    """
    for place in (base, base.parent):
        for path in sorted((*place.glob("*.yaml"), *place.glob("*.yml"))):
            content = _mapping(path)
            names = content.get("names")
            if isinstance(names, list | dict) and names and not is_hidden(path.name):
                listed = _listed(content, place, Path(normpath(base / "images")))
                return _numbered(names, path), listed, bool(content.get("kpt_shape"))
        for path in (place / folder / name for name in _LISTS for folder in (".", "labels")):
            if path.is_file():
                return {number: name.strip() for number, name in enumerate(_text(path).splitlines())}, {}, False
    raise DataError(f"{base} has YOLO labels, but nothing names their classes; add data.yaml with names: [..., ...]")


def _numbered(names: list[object] | dict[object, object], path: Path) -> dict[int, str]:
    """The names by their numbers, as they are written; a null is no name, and objects of that class have none."""
    written = yaml.load(_text(path), Loader=yaml.BaseLoader)["names"]  # noqa: S506  it makes nothing but text
    pairs = enumerate(names) if isinstance(names, list) else names.items()
    words = written if isinstance(written, list) else written.values()
    try:
        return {
            int(str(number)): "" if name is None else str(word)
            for (number, name), word in zip(pairs, words, strict=True)
        }
    except ValueError as error:
        raise DataError(f"{path}: names are not classes by their numbers ({error}); expected 0: vessel") from error


def _mapping(path: Path) -> dict[str, object]:
    try:
        return config.read_mapping(path)
    except ConfigError as error:
        raise DataError(str(error)) from error


def _listed(content: Mapping[str, object], near: Path, images: Path) -> dict[str, str]:
    """The split of every ending of the paths that lists name and that lie in folders for splits, without suffix.

    A list may name images as another machine had them. An ending that two splits share tells nothing, and neither does
    a folder that holds all images.
    """
    found: dict[str, str] = {}
    for key in SPLITS:
        given = content.get(key, content.get("valid") if key == "val" else None)
        for name in given if isinstance(given, list) else [given]:
            path = Path(normpath(near / str(name)))
            lines: list[str] = []
            if path.suffix == ".txt" and path.is_file():
                lines = [line.strip().replace("\\", "/") for line in _text(path).splitlines()]
            elif images in path.parents:
                lines = [file.relative_to(images).as_posix() for file in files_below(path)]
            for line in lines:
                *folders, last = composed(line).split("/")
                parts = [*folders, PurePosixPath(last).stem]
                for ending in ("/".join(parts[start:]) for start in range(len(parts))):
                    found[ending] = key if found.get(ending, key) == key else ""
    return found


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
