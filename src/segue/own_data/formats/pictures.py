"""Masks as pictures beside images or videos.

    images/a.jpg            masks/a.png                one picture an image
    images/a.jpg            masks/left lung/a.png      one folder a phrase, any value but 0 is the thing
    videos/x/00000.jpg      masks/x/00000.png          frames in a folder; not every frame needs a mask
    videos/x.mp4            masks/x/00012.png          frames of a file, by their number
    labels.json             {"1": "cat", "2": "dog", "255": null}

With `labels.json` a picture's values say what is where: grey levels or places in the palette; 0 is nothing, and a value
that it gives as null is passed over. Without it, a picture shows one thing, which the option `phrase` must name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from segue.data import shapes
from segue.data.annotation_io import read_annotations
from segue.errors import ConfigError, DataError
from segue.media.folder import frame_files
from segue.own_data.formats.entries import Drawn, Entry, Remark, Thing, UnmarkedError, merged, read_masks
from segue.types import Media

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
MASKS = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Masks:
    """The mask pictures of a medium: by frame number, those that show a phrase, or with "" all labels together.

    `labels` name the values of the latter; None there is a value to pass over.
    """

    pictures: Mapping[int, tuple[tuple[str, Path], ...]]
    labels: Mapping[int, str | None]


def recognises(base: Path) -> bool:
    """Whether a folder is laid out like this."""
    return (base / "masks").is_dir() and ((base / "images").is_dir() or (base / "videos").is_dir())


def entries(base: Path, phrase: str | None, remarks: list[Remark]) -> list[Entry]:
    """One entry per image or video; one without a mask has none in its record. Masks of no medium are refused.

    Raises: ConfigError, if masks need a phrase that is not given; DataError, if `labels.json` is wrong.
    """
    labels = _labels(base / "labels.json")
    found = [*_images(base, phrase, labels), *_videos(base, phrase, labels)]
    used = {path for entry in found for several in entry.record.pictures.values() for _, path in several}
    lost = [path for path in _files(base / "masks", MASKS) if path not in used]
    if lost:
        names = ", ".join(str(path.relative_to(base)) for path in lost[:5])
        text = (
            f"{base} has {len(lost)} masks without an image or frame of that name: {names} ...; rename or remove them"
        )
        remarks.append(Remark("refused", "masks", text))
    needs_phrase = any(not name for entry in found for several in entry.record.pictures.values() for name, _ in several)
    if needs_phrase and not labels:
        raise ConfigError(
            f"{base} has mask pictures, but nothing says what they show; give the option `phrase`, put them into one "
            "folder for each phrase (masks/left lung/a.png), or name their values in labels.json"
        )
    return found


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The things of a medium on the frames: every phrase, seen or not, and of labels those that are seen.

    Raises: DataError, if it has no mask, a mask has a value without a label, or several where there is one phrase.
    """
    return merged(read_masks(objects(entry, media, frames)), media, frames)


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
            values = shapes.read_values(path, media.size)
            for name, counts in _labelled(values, record.labels, path):
                yield Drawn(number, f"{name!r} on frame {frame}", name, frame, partial(str, counts))
                number += 1


def _single(path: Path, size: tuple[int, int]) -> str:
    values = shapes.read_values(path, size)
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
    images = {path.relative_to(base / "images"): path for path in _files(base / "images", PICTURES)}
    parts = {path.parts[0] for path in images if len(path.parts) > 1}
    folders = sorted(path for path in (base / "masks").iterdir() if path.is_dir())
    videos = {path.stem if path.is_file() else path.name for path in _listed(base / "videos")}
    phrases = [folder for folder in folders if folder.name not in parts | videos]
    for name in images:
        pictures = [
            ("" if labels else phrase or "", base / "masks" / name),
            *((folder.name, folder / name) for folder in phrases),
        ]
        there = tuple((text, mask) for text, path in pictures if (mask := _mask_at(path)))
        yield Entry((name.as_posix(),), Masks({0: there} if there else {}, labels))


def _videos(base: Path, phrase: str | None, labels: Mapping[int, str | None]) -> Iterator[Entry]:
    for video in _listed(base / "videos"):
        numbers = {path.stem: number for number, path in enumerate(frame_files(video))} if video.is_dir() else None
        pictures: dict[int, tuple[tuple[str, Path], ...]] = {}
        name = video.name if video.is_dir() else video.stem
        for mask in _files(base / "masks" / name, MASKS):
            number = (
                numbers.get(mask.stem) if numbers is not None else int(mask.stem) if mask.stem.isdecimal() else None
            )
            if number is not None:
                pictures[number] = (("" if labels else phrase or "", mask),)
        yield Entry((video.name,), Masks(pictures, labels), frames=tuple(sorted(pictures)))


def _mask_at(path: Path) -> Path | None:
    return next((path.with_suffix(suffix) for suffix in MASKS if path.with_suffix(suffix).exists()), None)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def _listed(folder: Path) -> list[Path]:
    """Videos: files of known endings, and folders of frames."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix.lower() in VIDEOS)
