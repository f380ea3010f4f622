"""What a file is, told from its first bytes, and whether all of it is there."""

from __future__ import annotations

import io
from pathlib import Path

from segue.errors import MediaError
from segue.reading import open_regular

Readable = io.BufferedReader | io.BytesIO
IMAGE_FORMATS = frozenset({"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIC", "DICOM"})
CONTAINER_FORMATS = frozenset({"mov", "matroska", "avi"})
EXPECTED = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC, DICOM, or video as MP4, MOV, MKV, WebM, AVI"
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".dcm"}
)
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
"""Endings by which a folder's images and videos are known, in lower case; the content decides what a file is."""
HEAD = 132
"""Bytes at the beginning of a file that tell its format."""

_PREFIXES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\x1a\x45\xdf\xa3", "matroska"),
)
_RIFF_FORMATS = {b"WEBP": "WEBP", b"AVI ": "avi"}
_MOV_FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


def reader(source: Path | bytes) -> Readable:
    """The bytes of a file or of encoded data, open for reading. The caller closes it."""
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def identify(head: bytes, name: str) -> str:
    """The format that a file's first bytes (`HEAD` of them) announce, whatever its name says.

    One of `IMAGE_FORMATS` or `CONTAINER_FORMATS`. Only these are ever opened, so that no exotic decoder and no
    playlist that points elsewhere can be reached.

    Raises: MediaError, if it is none of them.
    """
    found = next((kind for prefix, kind in _PREFIXES if head.startswith(prefix)), None)
    if found is None and head[:4] == b"RIFF":
        found = _RIFF_FORMATS.get(head[8:12])
    if found is None and head[4:8] in _MOV_FIRST_BOXES:
        found = "mov" if head[4:8] != b"ftyp" else _of_brands(head)
    if found is None and head[128:132] == b"DICM":
        found = "DICOM"
    if found is None:
        if head.startswith(b"version https://git-lfs"):
            raise MediaError(f"{name} is a Git LFS pointer and not the file; run `git lfs pull` where it came from")
        if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
            raise MediaError(f"{name} is a web page or XML, as a failed download leaves it; download the file again")
        begins = f"begins with {head[:12]!r}" if head else "is empty"
        raise MediaError(f"{name} {begins}, so it is no image or video of a supported format; expected {EXPECTED}")
    return found


def _of_brands(head: bytes) -> str:
    """Video or a kind of photo, by the brands that the first box lists."""
    brands = {head[place : place + 4] for place in range(8, min(len(head), int.from_bytes(head[:4])), 4)}
    if head[8:12] in _AVIF_BRANDS | _HEIC_BRANDS:
        return "AVIF" if brands & _AVIF_BRANDS else "HEIC"
    return "mov"


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its content, of a format that is read."""
    try:
        with reader(path) as file:
            return identify(file.read(HEAD), path.name) in IMAGE_FORMATS
    except (OSError, MediaError):
        return False


def check_complete(file: Readable, container: str, name: str) -> None:
    """Compare the length that a video container states about itself with the bytes that are there.

    Demuxers end a cut file as if it were whole, so that the cut is otherwise met late or, in Matroska, never.
    A container that does not state its length passes.

    Raises: MediaError, if bytes are missing at the end.
    """
    stated = {"mov": _stated_by_mov, "matroska": _stated_by_matroska, "avi": _stated_by_avi}[container](file)
    length = file.seek(0, io.SEEK_END)
    if stated > length:
        raise MediaError(f"{name} is cut off: it has {length:,} of the {stated:,} bytes it should have; copy it again")


def _stated_by_mov(file: Readable) -> int:
    """Where the last box with media in it ends; other boxes may be a camera's trailing notes of any shape."""
    stated = position = 0
    while len(header := _at(file, position, 16)) >= 8:
        size, kind = int.from_bytes(header[:4]), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16])
        if size < 8:  # 0: the box reaches to the end of the file; 1-7 are no sizes
            break
        position += size
        if kind in (b"moov", b"moof", b"mdat"):
            stated = position
    return stated


def _stated_by_matroska(file: Readable) -> int:
    """Where the segment ends: after the EBML header, or 0 if it was streamed with its size left open."""
    position = 0
    for _ in range(8):  # the EBML header, the segment, and at most some padding between them
        if not (header := _at(file, position, 12)):
            break
        id_length = 9 - header[0].bit_length()
        size_length = 9 - header[id_length].bit_length() if len(header) > id_length else 9
        if id_length > 4 or size_length > 8:
            break
        bits = 7 * size_length
        size = int.from_bytes(header[id_length : id_length + size_length]) & ((1 << bits) - 1)
        is_open = size == (1 << bits) - 1
        position += id_length + size_length + size
        if header[:id_length] == b"\x18\x53\x80\x67":
            return 0 if is_open else position
    return 0


def _stated_by_avi(file: Readable) -> int:
    """Where the last RIFF chunk ends; files over 1 GB have several."""
    position = 0
    while (header := _at(file, position, 8))[:4] == b"RIFF" and len(header) == 8:
        position += 8 + int.from_bytes(header[4:8], "little")
    return position


def _at(file: Readable, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)
