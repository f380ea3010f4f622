"""What readers of single images share: shapes with a name, each a list of polygons or pixels of another form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segue.data import shapes
from segue.media.folder import composed
from segue.own_data import finding
from segue.own_data.formats.entries import Drawn, Entry, Thing, merged, read_masks
from segue.types import Media

Size = tuple[int, int]
_MOST = 2.0
"""A share that is more is a number of pixels."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape: what it is called, and its polygons as they were drawn, or what gives its mask at an image's size.

    `is_share` says that coordinates are shares of width and height, from 0 to 1.
    """

    text: str
    polygons: Any = None
    pixels: Callable[[Size], str] | None = None
    is_share: bool = False


def things(entry: Entry, media: Media, frames: Sequence[int]) -> list[Thing]:
    """The things of an image.

    Raises: DataError, if a shape is wrong or empty.
    """
    return merged(read_masks(objects(entry, media, frames)), media, frames)


def objects(entry: Entry, media: Media, frames: Sequence[int]) -> Iterator[Drawn]:
    """The objects of an image."""
    for number, shape in enumerate(entry.record):
        height, width = media.size
        polygons = shape.polygons
        if shape.is_share:
            polygons = [[value * (height if place % 2 else width) for place, value in enumerate(polygons[0])]]
        counts = partial(shapes.polygons_mask, polygons, media.size)
        if shape.is_share and max(shape.polygons[0], default=0) > _MOST:
            polygons, counts = None, partial(_no_shares, max(shape.polygons[0]))
        if shape.pixels is not None:
            counts = partial(shape.pixels, media.size)
        yield Drawn(number, f"object {number} ({shape.text!r})", shape.text, 0, counts, polygons)


def _no_shares(most: float) -> str:
    raise shapes.BadCoordinateError(
        f"its coordinates reach to {most:g}, where shares of the sides, 0 to 1, are expected"
    )


def place_of(path: Path, folder: Path) -> str:
    """Where a file lies in a folder, without its ending: what an image and its annotation have in common."""
    return composed(path.relative_to(folder).with_suffix("").as_posix())


def files_below(base: Path, ending: str = "") -> Iterator[Path]:
    """The files of a folder and those below it with an ending in any case, hidden ones aside, ordered by name."""
    for path in finding.files_below(base):
        if path.name.lower().endswith(ending) and path.is_file():
            yield path
