"""The forms of other tools that answers can be written in, and what all of them share."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from segue.errors import ConfigError, MediaError
from segue.files import atomic_folder
from segue.integrations.runs import Named
from segue.media import iter_frames, read_image
from segue.media.folder import frame_files
from segue.media.image import orientation, stored_size
from segue.output.export import write_png
from segue.output.results import FEW_PIXELS
from segue.registry import Table
from segue.types import Media, Region

FORMS = Table(
    "form",
    {
        "coco": "segue.integrations.coco:write",
        "yolo": "segue.integrations.yolo:write",
        "cvat": "segue.integrations.cvat_xml:write",
        "label_studio": "segue.integrations.label_studio:write",
        "davis": "segue.integrations.submissions:write_davis",
        "ref_vos": "segue.integrations.submissions:write_ref_vos",
    },
)
_AS_THEY_ARE = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
"""Endings of pictures that every tool reads."""


@dataclass(slots=True)
class Written:
    """What an export has written, and what of the answers is lost in its form.

    `area_errors` are, of each object that became a polygon, the pixels that differ as a share of its own.
    """

    pictures: int = 0
    objects: int = 0
    area_errors: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Seen(NamedTuple):
    """An object on a frame: its number in its answer, what it is, and its mask, which is not empty."""

    number: int
    region: Region
    mask: Bool[np.ndarray, "h w"]


def export(answers: Iterable[Named], form: str, out: Path) -> Written:
    """Write answers, each with a name for its files, into a new folder, as the tool of that `form` takes them.

    Raises: ConfigError, for an unknown form or without answers about an image or video; MediaError, if something is at
    `out` or cannot be written.
    """
    write = FORMS[form]
    named = [(name, answer) for name, answer in answers if answer.media is not None]
    if not named:
        raise ConfigError("there is no answer about an image or video; nothing to write")
    with atomic_folder(out) as folder:
        written: Written = write(named, folder)
    places = sum(region.masks is None for _, answer in named for region in answer.regions)
    if places:
        written.notes.append(f"{places} places that were given in words have no mask and are left out")
    return written


def media_of(named: Named) -> Media:
    """What an answer is about."""
    media = named[1].media
    assert media is not None, "answers without a medium were left out"
    return media


def frames_of(named: Named) -> list[int]:
    """The frames of the medium that have masks; of an image its only one."""
    tracks = [region.masks for region in named[1].regions if region.masks is not None]
    if not tracks:
        return [0] if media_of(named).kind == "image" else []
    return [int(frame) for frame in tracks[0].index]


def seen(named: Named, position: int) -> Iterator[Seen]:
    """The objects that are to be seen at a position of the frames: masks of more than a few pixels, of objects that are
    anywhere there.
    """
    for number, region in enumerate(named[1].regions, start=1):
        is_denied = region.presence is not None and (region.presence < 0.5).all()
        if region.masks is not None and not is_denied:
            mask = region.masks.dense(position)
            if np.count_nonzero(mask) >= FEW_PIXELS:
                yield Seen(number, region, mask)


def shared_names(answers: Iterable[Named]) -> list[str]:
    """A note, if several media have one name, where that is all by which a tool knows them."""
    counts = Counter(media_of(named).name for named in answers)
    shared = [name for name, count in counts.items() if count > 1]
    return [f"{', '.join(shared[:5])}: several files of one name, which the tool cannot tell apart"] if shared else []


def phrases_of(answers: Iterable[Named]) -> list[str]:
    """All phrases for which there is a region with masks, in the order of their first coming."""
    return list(dict.fromkeys(one.phrase for _, answer in answers for one in answer.regions if one.masks is not None))


def picture_files(named: Named, folder: Path) -> Iterator[tuple[str, int]]:
    """Put the pictures of a medium into a folder; gives their names there, each with its position of the frames.

    An image is copied, or decoded where another tool may see it otherwise: turned, of more than 8 bits, or in a format
    that few read. Frames of a video that have masks become PNG files.
    """
    name, media = named[0], media_of(named)
    folder.mkdir(exist_ok=True)
    if media.kind == "image":
        path = media.source if isinstance(media.source, Path) else None
        if path is not None and _is_plain(path, media):
            target = f"{name}{path.suffix.lower()}"
            shutil.copyfile(path, folder / target)
        else:
            target = f"{name}.png"
            write_png(folder / target, read_image(media))
        yield target, 0
        return
    (folder / name).mkdir()
    frames = {frame: position for position, frame in enumerate(frames_of(named))}
    for frame in iter_frames(media, stop=max(frames, default=-1) + 1) if frames else ():
        if frame.number in frames:
            target = f"{name}/{frame.number:05d}.png"
            write_png(folder / target, frame.image)
            yield target, frames[frame.number]


def frame_names(media: Media) -> list[str]:
    """What the frames of a video are called, without an ending: as their files, or by their numbers."""
    if isinstance(media.source, Path) and media.source.is_dir():
        return [path.stem for path in frame_files(media.source)]
    return [f"{number:05d}" for number in range(media.count)]


def _is_plain(path: Path, media: Media) -> bool:
    try:
        is_usual = path.suffix.lower() in _AS_THEY_ARE and media.window is None
        return is_usual and orientation(path) == 1 and stored_size(path) == media.size
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}; check that it is still there") from error
