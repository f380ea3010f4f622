"""Colours of 16 bits a channel, of which Pillow keeps 8, through FFmpeg.

Of a TIFF FFmpeg reaches the first page alone, and it mixes up tiles. So it gets each page, or each tile, as a file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from segue.errors import MediaError
from segue.media import formats
from segue.media.formats import Readable

_WIDTH, _HEIGHT, _BITS, _MEANING, _SAMPLES, _ROWS, _PLANES, _EXTRA = 256, 257, 258, 262, 277, 278, 284, 338
_STRIPS, _TILES = (273, 279), (324, 325)
"""Tags of where the pieces of a page lie and how long they are, in bytes."""
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_LAYOUT = (_WIDTH, _HEIGHT, _BITS, 259, _MEANING, 266, _SAMPLES, _ROWS, _PLANES, 317, _EXTRA, 339)
"""Tags that say how the values of a page are laid out and packed; all are whole numbers."""
_GREY = {_BITS: [16], _MEANING: [1], _SAMPLES: [1], _PLANES: [1], _EXTRA: [], 339: [1]}
_SHORT, _LONG = 3, 4


class Colours:
    """The pictures of a PNG or TIFF with 16 bits a channel; they are asked for in ascending order."""

    def __init__(self, source: Path | bytes, name: str):
        self._source, self._name = source, name
        self._animation: Iterator[tuple[int, np.ndarray]] | None = None

    def read(self, image: Image.Image) -> UInt16[np.ndarray, "h w 3"]:
        """The picture that an image, opened from the same file, stands at; a TIFF is not turned upright.

        Raises: MediaError, if FFmpeg cannot decode it.
        """
        import av

        try:
            if image.format != "TIFF":
                return self._of_png(image)
            with formats.reader(self._source) as file:
                return _of_tiff(file, image)
        except (av.FFmpegError, ValueError, LookupError, TypeError, struct.error) as error:
            where = f" in picture {image.tell()}" if getattr(image, "n_frames", 1) > 1 else ""
            raise MediaError(
                f"{self._name} has 16 bits a channel and cannot be decoded{where} ({error}); save it with 8"
            ) from error

    def _of_png(self, image: Image.Image) -> UInt16[np.ndarray, "h w 3"]:
        page, has_default = image.tell(), getattr(image, "default_image", False)
        if getattr(image, "n_frames", 1) == 1 or (has_default and page == 0):
            return _first(self._pictures("png_pipe"))
        self._animation = self._animation or enumerate(self._pictures("apng"))
        wanted = page - int(has_default)  # what viewers without animation show is none of the frames
        return _first(pixels for number, pixels in self._animation if number == wanted)

    def _pictures(self, kind: str) -> Iterator[np.ndarray]:
        with formats.reader(self._source) as file:
            yield from _decoded(file, kind)


def _decoded(file: Readable, kind: str) -> Iterator[np.ndarray]:
    import av

    with av.open(file, "r", format=kind) as container:
        for frame in container.decode(video=0):
            yield frame.reformat(format="rgb48le").to_ndarray()


def _first(pictures: Iterator[np.ndarray]) -> np.ndarray:
    found = next(pictures, None)
    if found is None:
        raise ValueError("it breaks off before")
    return found


def _of_tiff(file: Readable, image: Any) -> UInt16[np.ndarray, "h w 3"]:
    """The page that an image stands at."""
    tags = image.tag_v2
    offsets, lengths = _TILES if _TILES[0] in tags else _STRIPS
    if sum(tags[lengths]) > file.seek(0, io.SEEK_END):
        raise ValueError("it states more bytes than it has")
    pieces = [_piece(file, *place) for place in zip(tags[offsets], tags[lengths], strict=True)]
    layout = {tag: np.atleast_1d(tags[tag]).tolist() for tag in _LAYOUT if tag in tags}
    if offsets == _STRIPS[0]:
        return _page(tags.prefix, layout, pieces)
    return _tiled(tags, layout, pieces)


def _piece(file: Readable, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _tiled(tags: Any, layout: dict[int, list[int]], tiles: list[bytes]) -> UInt16[np.ndarray, "h w 3"]:
    """A page of tiles, row by row; where the planes of the colours are apart, all tiles of one before the next."""
    height, width, down, across = (int(tags[tag]) for tag in (_HEIGHT, _WIDTH, _TILE_HEIGHT, _TILE_WIDTH))
    if down > 2 * height + 1024 or across > 2 * width + 1024:
        raise ValueError(f"its tiles are {across}x{down}")
    layout = layout | {_HEIGHT: [down], _WIDTH: [across], _ROWS: [down]}
    is_apart = tags.get(_PLANES) == 2
    if is_apart:
        layout |= _GREY
    columns = -(-width // across)
    in_plane = columns * -(-height // down)
    if len(tiles) < in_plane * (3 if is_apart else 1):
        raise ValueError("it lacks tiles")
    pixels = np.empty((height, width, 3), np.uint16)
    for number, tile in enumerate(tiles[: 3 * in_plane if is_apart else in_plane]):
        plane, place = divmod(number, in_plane)
        top, left = place // columns * down, place % columns * across
        target = pixels[top : top + down, left : left + across]
        target = target[..., plane : plane + 1] if is_apart else target
        target[:] = _page(tags.prefix, layout, [tile])[: target.shape[0], : target.shape[1], : target.shape[2]]
    return pixels


def _page(prefix: bytes, layout: dict[int, list[int]], strips: list[bytes]) -> UInt16[np.ndarray, "h w 3"]:
    """A page of these strips, decoded."""
    order = "<" if prefix == b"II" else ">"
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {tag: values for tag, values in layout.items() if values}
    tags |= {_STRIPS[0]: starts[:-1], _STRIPS[1]: [len(strip) for strip in strips]}
    end = starts[-1] + starts[-1] % 2  # tables begin at even places
    data = (prefix + struct.pack(order + "HI", 42, end) + b"".join(strips)).ljust(end, b"\0")
    return _first(_decoded(io.BytesIO(data + _table(tags, order, end)), "tiff_pipe"))


def _table(tags: dict[int, list[int]], order: str, start: int) -> bytes:
    """A TIFF's table of tags that begins at `start`, with the values that do not fit into it behind it."""
    entries, values = [], b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        kind, letter = (_SHORT, "H") if max(tags[tag]) < 1 << 16 else (_LONG, "I")
        packed = struct.pack(f"{order}{len(tags[tag])}{letter}", *tags[tag]).ljust(4, b"\0")
        place = packed if len(packed) == 4 else struct.pack(order + "I", behind + len(values))
        values += packed if len(packed) > 4 else b""
        entries.append(struct.pack(order + "HHI", tag, kind, len(tags[tag])) + place)
    return struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4) + values
