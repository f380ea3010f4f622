"""Checks that a picture file carries in itself, which Pillow does not make."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from segue.errors import MediaError
from segue.media import formats
from segue.media.formats import Readable

_PIECE = 1 << 20
_OFFSETS, _COUNTS, _COMPRESSION = (273, 324), (279, 325), 259
_DEFLATE = (8, 32946)
_MOST_TAGS = 10_000
_MOST_PARTS = 1_000_000
_SIZES = {3: "H", 4: "I", 16: "Q"}


def check(source: Path | bytes, name: str) -> None:
    """Compare the checksums of a PNG and the parts of a TIFF with what is there; other formats have none.

    Raises: MediaError, if they do not agree or something is missing.
    """
    with formats.reader(source) as file:
        kind = formats.identify(file.read(formats.HEAD), name)
        if kind not in ("PNG", "TIFF"):
            return
        try:
            (_check_png if kind == "PNG" else _check_tiff)(file)
        except (_Damage, zlib.error, struct.error) as error:
            raise MediaError(f"{name} is damaged: {error}; save or copy it again") from error


class _Damage(Exception):  # noqa: N818  its text ends an error's
    """What is wrong with a file."""


def _check_png(file: Readable) -> None:
    """Every chunk's CRC, and the checksum at the end of the compressed pixels."""
    file.seek(8)
    pixels = zlib.decompressobj()
    most = 0
    while len(header := file.read(8)) == 8:
        length, kind = int.from_bytes(header[:4]), header[4:]
        crc = zlib.crc32(kind)
        left = length
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
            if kind == b"IHDR" and len(piece) >= 8:
                width, height = struct.unpack(">II", piece[:8])
                most = (width * 8 + 8) * height + 64 * _PIECE  # what the pixels can need, interlaced or not
            if kind == b"IDAT":
                most -= _inflated(pixels, piece, most)
        if left or int.from_bytes(file.read(4)) != crc:
            raise _Damage(f"the checksum of its part {kind.decode('ascii', 'replace')!r} is wrong")
        if kind == b"IEND":
            break
    if not pixels.eof:
        raise _Damage("its compressed pixels end too early")


def _inflated(pixels: zlib._Decompress, piece: bytes, most: int) -> int:
    """How many bytes come of a piece; they are not kept."""
    done = 0
    while piece and not pixels.eof:
        done += len(pixels.decompress(piece, _PIECE))
        piece = pixels.unconsumed_tail
        if done > most:
            raise _Damage("its compressed pixels are more than its size says")
    return done


def _check_tiff(file: Readable) -> None:
    """Whether each part of each page lies in the file, and is sound where it has a checksum."""
    end = file.seek(0, 2)
    for tags in _pages(file):
        offsets = next((tags[tag] for tag in _OFFSETS if tag in tags), ())
        counts = next((tags[tag] for tag in _COUNTS if tag in tags), ())
        # a page without counts is left to the decoder
        for offset, count in zip(offsets, counts, strict=False):
            if offset + count > end:
                raise _Damage("it ends before its pixels do")
            if any(kind in _DEFLATE for kind in tags.get(_COMPRESSION, (1,))[:1]):
                file.seek(offset)
                part = zlib.decompressobj()
                for start in range(0, count, _PIECE):
                    _inflated(part, file.read(min(_PIECE, count - start)), 1 << 32)
                if not part.eof:
                    raise _Damage("its compressed pixels end too early")


def _pages(file: Readable) -> Iterator[dict[int, tuple[int, ...]]]:
    """The whole numbers in the tags of each page of a TIFF, classic or big."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = struct.unpack(order + "H", head[2:4])[0] == 43
    count_code, place_code, entry_length = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    place = struct.unpack(order + place_code, head[8:16] if is_big else head[4:8])[0]
    seen: set[int] = set()
    while place and place not in seen:
        seen.add(place)
        file.seek(place)
        count = struct.unpack(order + count_code, file.read(struct.calcsize(count_code)))[0]
        if count > _MOST_TAGS:
            raise _Damage(f"a page states {count} tags")
        entries = file.read(count * entry_length)
        following = file.read(struct.calcsize(place_code))
        yield dict(_tags(file, entries, order, entry_length))
        place = struct.unpack(order + place_code, following)[0] if following else 0


def _tags(file: Readable, entries: bytes, order: str, length: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    room = (length - 4) // 2
    for start in range(0, len(entries) - length + 1, length):
        tag, kind = struct.unpack_from(order + "HH", entries, start)
        count = struct.unpack_from(order + ("Q" if room == 8 else "I"), entries, start + 4)[0]
        if tag not in (*_OFFSETS, *_COUNTS, _COMPRESSION) or kind not in _SIZES:
            continue
        if count > _MOST_PARTS:
            raise _Damage(f"a page states {count} parts")
        form = f"{order}{count}{_SIZES[kind]}"
        data = entries[start + 4 + room : start + length]
        if struct.calcsize(form) > room:
            file.seek(struct.unpack(order + ("Q" if room == 8 else "I"), data)[0])
            data = file.read(struct.calcsize(form))
        yield tag, struct.unpack_from(form, data)
