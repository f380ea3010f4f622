"""Masks as pictures beside images or videos.

    images/a.jpg            masks/a.png                one picture an image
    images/a.jpg            masks/left lung/a.png      one folder a phrase, any value but 0 is the thing
    images/a.jpg            masks/a/1.png, 2.png ...   several of an image, which are united
    videos/x/00000.jpg      masks/x/00000.png          frames in a folder; not every frame needs a mask
    videos/x.mp4            masks/x/00012.png          frames of a file, by their number
    labels.json             {"1": "cat", "2": "dog", "255": null}

The folders may also be called `image`, `img`, `imgs` or `img_dir`, and `mask`, `labels`, `gt`, `annotations`, `ann_dir`
and the like. Upper case and lower case are the same in names, a mask may have another ending than its image, or its
whole name with `.png` behind, `_mask`, `_seg`, `_gt` or `_label` behind its name or before it, and alpha; one colour
beside black is the thing. A mask saved as JPEG is taken for one thing, and that is said. An all-black mask says that
its phrase is not there.

With `labels.json` a picture's values say what is where: grey levels or places in the palette; 0 is nothing, and a value
that it gives as null is passed over. Without it, a picture shows one thing, which the option `phrase` must name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from segue.data import shapes
from segue.data.annotation_io import read_annotations
from segue.errors import ConfigError, DataError
from segue.media import formats
from segue.media.folder import folded, frame_files, is_hidden
from segue.media.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from segue.own_data.finding import files_below
from segue.own_data.formats.entries import Drawn, Entry, Remark, Thing, UnmarkedError, merged, read_masks
from segue.types import Media

NAME = "mask pictures"

_LOSSY = frozenset({".jpg", ".jpeg"})
_NOTES = frozenset({".txt", ".json", ".csv", ".xml", ".md", ".yaml", ".yml", ".html", ".log", ".cache"})
MASKS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", *_LOSSY})
_IMAGES = ("images", "image", "img", "imgs", "img_dir")
_MASKS = ("masks", "mask", "labels", "label", "gt", "groundtruth", "ground_truth", "annotations", "ann_dir")
_WORD = "(masks?|seg|segmentation|gt|groundtruth|labels?|labelids|annotation|matte)"
_MARK = re.compile(rf"^{_WORD}[-_ ](?=.)|(?<=.)[-_ .]{_WORD}$", re.IGNORECASE)
"""What tools put behind the name of an image, or before it, to name its mask."""
_IMAGE = re.compile(r"^(image|img)[-_ ](?=.)|(?<=.)[-_ ](image|img)$", re.IGNORECASE)
"""The same for the image, where its mask has such a word too."""
Index = Mapping[str, list[Path]]


@dataclass(frozen=True, slots=True)
class Masks:
    """The mask pictures of a medium: by frame number, those that show a phrase, or with "" all labels together.

    `labels` name the values of the latter; None there is a value to pass over.
    """

    pictures: Mapping[int, tuple[tuple[str, Path], ...]]
    labels: Mapping[int, str | None]


def recognises(base: Path) -> bool:
    """Whether a folder is laid out like this."""
    return masks_of(base).is_dir() and (images_of(base).is_dir() or (base / "videos").is_dir())


def images_of(base: Path) -> Path:
    """Where the images lie."""
    return _called(base, _IMAGES, IMAGE_SUFFIXES)


def masks_of(base: Path) -> Path:
    """Where the masks lie."""
    return _called(base, _MASKS, MASKS)


def _called(base: Path, names: Sequence[str], suffixes: Collection[str]) -> Path:
    """The folder of the first of these names; of the others than the first, one that holds a picture."""
    there = {path.name.casefold(): path for path in base.iterdir() if path.is_dir()}
    found = (path for name in names[1:] if (path := there.get(name)) and _files(path, suffixes))
    return there.get(names[0]) or next(found, base / names[0])


def entries(base: Path, phrase: str | None, remarks: list[Remark]) -> list[Entry]:
    """One entry per image or video; one without a mask has none in its record. Masks of no medium are refused.

    Raises: ConfigError, if masks need a phrase that is not given; DataError, if `labels.json` is wrong.
    """
    labels = _labels(base / "labels.json")
    found = [*_images(base, phrase, labels), *_videos(base, phrase, labels)]
    used = {path for entry in found for several in entry.record.pictures.values() for _, path in several}
    masks = _files(masks_of(base), MASKS)
    lost = [path for path in masks if path not in used]
    smeared = [path for path in masks if path.suffix.lower() in _LOSSY]
    if smeared:
        first = smeared[0].relative_to(base)
        text = f"{len(smeared)} masks are JPEG, such as {first}: what is above half its brightest is one thing"
        remarks.append(Remark("unsure_mask", "masks", f"{text}; save masks as PNG"))
    remarks += [_unread(path, base) for path in _others(images_of(base), IMAGE_SUFFIXES)]
    remarks += [_unread(path, base) for path in _others(masks_of(base), MASKS)]
    remarks += [_unread(path, base, "video", "MP4") for path in _unlisted(base / "videos")]
    remarks += _beside(base)
    if lost:
        names = ", ".join(str(path.relative_to(base)) for path in lost[:5])
        text = (
            f"{base} has {len(lost)} masks without an image or frame of that name: {names} ...; name them as their "
            "images, several of an image in a folder of its name (masks/a/1.png), or remove them"
        )
        remarks.append(Remark("refused", "masks", text))
    needs_phrase = any(not name for entry in found for several in entry.record.pictures.values() for name, _ in several)
    if needs_phrase and not labels:
        raise ConfigError(
            f"{base} has mask pictures, but nothing says what they show; give the option `phrase`, put them into one "
            "folder for each phrase (masks/left lung/a.png), or name their values in labels.json"
        )
    return found


def is_shown(phrase: str, entries: Iterable[Entry]) -> bool:
    """Whether a phrase is what some mask shows."""
    shown = (several for entry in entries for several in entry.record.pictures.values())
    return any(name == phrase for several in shown for name, _ in several)


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The things of a medium on the frames: every phrase, seen or not, and of labels those that are seen.

    Raises: DataError, if it has no mask, a mask has a value without a label, or several where there is one phrase.
    """
    found = merged(read_masks(objects(entry, media, frames)), media, frames)
    if media.kind == "video":
        return found
    return [
        replace(thing, is_absent=all(shapes.is_empty(counts, media.size) for counts in thing.counts)) for thing in found
    ]


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The masks of a medium on the frames: of every phrase, and of labels those that are seen.

    Raises: DataError, MediaError, if it has no mask, or one with labels cannot be read or has a value without a label.
    """
    record: Masks = entry.record
    if not record.pictures:
        raise UnmarkedError("it has no mask picture; add one under masks/ with the same name, or take the medium out")
    number = 0
    for frame in frames:
        for phrase, path in record.pictures[frame]:
            if phrase:
                yield Drawn(number, f"{phrase!r} on frame {frame}", phrase, frame, partial(_single, path, media.size))
                number += 1
                continue
            if path.suffix.lower() in _LOSSY:
                raise DataError(
                    f"{path.name} is a JPEG, which smears the values that labels.json names; save it as PNG"
                )
            values = shapes.read_values(path, media.size)
            for name, counts in _labelled(values, record.labels, path):
                yield Drawn(number, f"{name!r} on frame {frame}", name, frame, partial(str, counts))
                number += 1


def _unread(path: Path, base: Path, what: str = "picture", form: str = "PNG") -> Remark:
    text = f"it is no {what} of a format that is read; save it as {form}"
    return Remark("passed_over", str(path.relative_to(base)), text)


def _beside(base: Path) -> Iterator[Remark]:
    """What is said of folders of pictures beside those that are read, such as masks of another person or kind."""
    read = (images_of(base), masks_of(base), base / "videos")
    for folder in sorted(path for path in base.iterdir() if path.is_dir() and not is_hidden(path.name)):
        count = 0 if folder in read else len(_files(folder, MASKS))
        if count:
            text = f"its {count} pictures are not read: masks are those of {read[1].name}/, images of {read[0].name}/"
            yield Remark("passed_over", f"{folder.name}/", text)


def _single(path: Path, size: tuple[int, int]) -> str:
    values = shapes.read_values(path, size, is_one_thing=True)
    _check_single(values, path)
    return shapes.value_mask(values, None)


def _labelled(
    values: Int[np.ndarray, "h w"], labels: Mapping[int, str | None], path: Path
) -> Iterator[tuple[str, str]]:
    for value in np.unique(values).tolist():
        if value and value not in labels:
            raise DataError(
                f"{path.name} has the value {value}, which labels.json does not name; add it, with null to pass it over"
            )
        if value and labels[value] is not None:
            yield str(labels[value]), shapes.value_mask(values, [value])


def _check_single(values: Int[np.ndarray, "h w"], path: Path) -> None:
    kinds = np.unique(values)
    if len(kinds) > 2 or (len(kinds) == 2 and kinds[0] != 0):
        raise DataError(
            f"{path.name} has the values {kinds[:6].tolist()}{' ...' if len(kinds) > 6 else ''} where 0 and one other "
            "were expected; name the values of several objects in labels.json, and save masks without smoothing or loss"
        )


def _labels(path: Path) -> dict[int, str | None]:
    if not path.exists():
        return {}
    content = read_annotations(path)
    if not isinstance(content, dict) or not all(
        value.isdecimal() and isinstance(name, str | None) for value, name in content.items()
    ):
        raise DataError(f'{path} is {str(content)[:60]}; expected values and their names, such as {{"1": "cat"}}')
    return {int(value): name for value, name in content.items()}


def _images(base: Path, phrase: str | None, labels: Mapping[int, str | None]) -> Iterator[Entry]:
    place, masks = images_of(base), masks_of(base)
    images = {path.relative_to(place): path for path in _files(place, IMAGE_SUFFIXES)}
    parts = {path.parts[0] for path in images if len(path.parts) > 1}
    folders = sorted(path for path in masks.iterdir() if path.is_dir() and not is_hidden(path.name))
    videos = {path.stem if path.is_file() else path.name for path in _listed(base / "videos")}
    own = {folded(one.as_posix()) for name in images for one in (name, _stem(name))}
    inner = {folded(place.as_posix()) for name in images for place in name.parents}
    phrases = [path for path in folders if path.name not in parts | videos and folded(path.name) not in own]
    indices = [("" if labels else phrase or "", _index(masks))]
    indices += [(folder.name, _index(folder)) for folder in phrases]
    for name in images:
        stem = _stem(name)
        bare = stem.with_name(_IMAGE.sub("", stem.name))
        called = (stem,) if folded(bare.as_posix()) in own else (stem, bare)
        there = [(text, mask) for text, index in indices if (mask := _mask_of(called, index))]
        several = [] if folded(stem.as_posix()) in inner else _files(masks / stem, MASKS) or _files(masks / name, MASKS)
        there += [(indices[0][0], mask) for mask in several]
        yield Entry((name.as_posix(),), Masks({0: tuple(there)} if there else {}, labels))


def _videos(base: Path, phrase: str | None, labels: Mapping[int, str | None]) -> Iterator[Entry]:
    for video in _listed(base / "videos"):
        numbers = None
        if video.is_dir():
            numbers = {_number(path.stem): number for number, path in enumerate(frame_files(video))}
        pictures: dict[int, tuple[tuple[str, Path], ...]] = {}
        name = video.name if video.is_dir() else video.stem
        for mask in _files(masks_of(base) / name, MASKS):
            number = _number(_bare(mask.stem))
            number = number if numbers is None else numbers.get(number)
            if number is not None:
                pictures[number] = (("" if labels else phrase or "", mask),)
        yield Entry((video.name,), Masks(pictures, labels), frames=tuple(sorted(pictures)))


def _index(folder: Path) -> Index:
    """The masks below a folder by their path in it, also without what says that they are masks."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder, MASKS):
        place = path.relative_to(folder).with_suffix("")
        for one in dict.fromkeys((place, place.with_name(_bare(place.name)), _stem(place))):
            found.setdefault(folded(one.as_posix()), []).append(path)
    return found


def _bare(stem: str) -> str:
    """A name without what says that it is a mask."""
    return _MARK.sub("", stem)


def _number(stem: str) -> int | None:
    """The number that the name of a frame ends in."""
    match = re.search(r"[0-9]+$", stem)
    return int(match[0]) if match else None


def _stem(name: Path) -> Path:
    """A path without the ending of a picture."""
    return name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name


def _mask_of(called: Sequence[Path], index: Index) -> Path | None:
    """The mask of an image by the first of its names that has one.

    Raises: DataError, if two files could be it.
    """
    stem = called[0]
    found = next(filter(None, (index.get(folded(name.as_posix())) for name in called)), [])
    exact = [path for path in found if folded(path.stem) == folded(stem.name)] or found
    exact = [path for path in exact if path.with_suffix("").parts[-len(stem.parts) :] == stem.parts] or exact
    if len(exact) > 1:
        names = " and ".join(path.name for path in exact[:2])
        raise DataError(f"{names} could both be the mask of {stem.as_posix()}; remove one")
    return exact[0] if exact else None


def _files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The pictures below a folder: by their ending, and by their content where they have none."""
    return [path for path in _all(folder) if _is_read(path, suffixes)]


def _others(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below a folder that look like pictures and are not read."""
    return [path for path in _all(folder) if not _is_read(path, suffixes) and path.suffix.lower() not in _NOTES]


def _is_read(path: Path, suffixes: Collection[str]) -> bool:
    if path.suffix.lower() in suffixes:
        return True
    is_named = re.search(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", path.name)
    return not is_named and formats.is_picture(path)


def _all(folder: Path) -> list[Path]:
    return sorted(files_below(folder))


def _listed(folder: Path) -> list[Path]:
    """Videos: files of known endings, and folders of frames."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not is_hidden(path.name) and (path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES)
    )


def _unlisted(folder: Path) -> list[Path]:
    """The files beside videos that look like such and are not read."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    known = VIDEO_SUFFIXES | _NOTES
    return [path for path in there if path.is_file() and not is_hidden(path.name) and path.suffix.lower() not in known]
