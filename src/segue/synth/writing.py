"""Generated pictures as a data set on disk: what is asked for, checked, drawn and written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segue.errors import ConfigError
from segue.files import atomic_folder
from segue.progress import UNWATCHED, Progress
from segue.synth.clips import clip
from segue.synth.scenes import Split, scene
from segue.synth.vessels import vessels
from segue.synth.wording import LANGUAGES, Language
from segue.synth.writers import FORMATS
from segue.synth.writers.base import Drawing, Format, Order

Kind = Literal["scenes", "vessels"]

_MINE = ("annotations.json", "images", "train", "val", "test")
_OFFICIAL = ("ref_seg", "video_datas", "llava_data", "glamm_data", "osprey-724k")
_WRITTEN = (*_MINE, *_OFFICIAL)  # whatever any of the forms writes at the top of its folder

CLIP_FRAMES = 8
EVEN_SIZE = (240, 320)
"""(height, width) of clips in forms that need even sides, where none is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to write: `count` drawings of a split and seed from number `start` on.

    `size` is (height, width) in pixels, drawn by chance where it is None. `frames` is how many a clip has; None stands
    for `CLIP_FRAMES`, or as many as the form needs.

    Raises: ConfigError, for what a form cannot hold, and numbers out of range.
    """

    format: str
    kind: Kind = "scenes"
    count: int = 100
    split: Split = "train"
    seed: int = 0
    start: int = 0
    size: tuple[int, int] | None = None
    frames: int | None = None
    languages: tuple[Language, ...] = LANGUAGES

    def __post_init__(self) -> None:
        form: Format = FORMATS[self.format]
        if self.kind == "vessels" and form.holds != "marks":
            names = ", ".join(name for name in FORMATS if FORMATS[name].holds == "marks")
            raise ConfigError(f"vessels have masks and one phrase, which {self.format} does not hold; choose {names}")
        if self.frames is not None and form.holds != "clips":
            raise ConfigError(f"{self.format} holds images, not {self.frames} frames; leave the frames out")
        if self.frames is not None and self.frames < form.least_frames:
            raise ConfigError(
                f"a clip of {self.frames} frames is too short for {self.format}: {form.least_frames} at least"
            )
        if self.size and form.even and (self.size[0] % 2 or self.size[1] % 2):
            raise ConfigError(
                f"{self.format} holds video files, whose sides are even; {self.size} (height, width) is not"
            )
        if self.count < 1 or not self.languages:
            raise ConfigError(f"{self.count} drawings in {len(self.languages)} languages: ask for one of each at least")


def write(target: Path, request: Request, *, overwrite: bool = False, progress: Progress = UNWATCHED) -> None:
    """Write a data set into a new folder. What is cut short leaves nothing. Progress is told in drawings.

    With `overwrite` a folder that holds such a data set, and nothing else, is replaced.

    Raises: ConfigError, for numbers out of range; MediaError, if the folder is there already, or cannot be written.
    """

    def drawings() -> Iterator[Drawing]:
        for index in range(request.start, request.start + request.count):
            yield _draw(request, index)
            progress.step()

    progress.start(request.count)
    with atomic_folder(target, replaces=_WRITTEN if overwrite else None) as folder:
        FORMATS[request.format].write(folder, Order(request.split, request.languages), drawings())


def _draw(request: Request, index: int) -> Drawing:
    form: Format = FORMATS[request.format]
    if request.kind == "vessels":
        return vessels(request.seed, index, split=request.split, size=request.size)
    if form.holds != "clips":
        return scene(request.seed, index, split=request.split, size=request.size)
    size = request.size or (EVEN_SIZE if form.even else None)
    frames = request.frames or max(CLIP_FRAMES, form.least_frames)
    return clip(request.seed, index, split=request.split, size=size, frames=frames)
