"""Opening files that others made: regular files only, never more than is allowed, and text in whatever encoding.

A pipe or device could be read for ever, and a file of any size could fill the memory; neither is ever opened here.
"""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import re
import stat
from pathlib import Path
from xml.etree import ElementTree

from segue.errors import MediaError

log = logging.getLogger(__name__)

MAX_TEXT = 2 * 2**30
"""Bytes of an annotation file or other text, the most that is read: COCO's largest has a quarter of that."""

_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]+:/|data:[a-z]")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PAIRS = {
    "gb18030": rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]",
    "big5": rb"[\xa1-\xc6][\x40-\x7e\xa1-\xfe]",
    "euc_kr": rb"[\xa1-\xa3\xb0-\xc8][\xa1-\xfe]",
}
"""The usual characters of old code pages of two bytes: Chinese ones of both scripts, and Korean syllables."""
_WESTERN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿŒœŠšŸŽž‘’“”„‚–—…€£§©®™•†‰‹›°²³µ½×·«»¿¡´ ]*")
_LONG = re.compile(r"[À-ÖØ-öø-ÿŒœŠšŸŽž]{3}")
_ENOUGH = 0.9

_DECLARED = 4096
"""Letters at the beginning within which XML states what it is."""


def refuse_url(given: str | Path) -> None:
    """Refuse what names a place on a network, where a file is expected.

    Raises: MediaError.
    """
    text = str(given)
    if _URL.match(text) and not Path(text[:4096]).exists():
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise MediaError(
            f"{shown} is a URL, which is not fetched here: download it first, then give the file; "
            "of object stores `segue segment` takes s3://, gs://, gcs://, az:// and abfs://"
        )


def at_home(given: str | Path) -> Path:
    """A path as people write it: `~` is their home. What only begins like somebody's home, as ~$a.png, stays a name."""
    return Path(os.path.expanduser(given))  # noqa: PTH111  pathlib's own raises where nobody has that name


def open_regular(path: Path) -> io.BufferedReader:
    """A regular file, open for reading bytes; opening never waits.

    Raises: OSError, also if it is a pipe, a device or a socket, or its name cannot be one.
    """
    try:
        # without O_NONBLOCK opening a pipe waits for somebody to write to it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, "its name holds a zero byte", str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file but a pipe, a device or a socket"
        raise OSError(errno.EINVAL, what, str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int = MAX_TEXT) -> bytes:
    """All bytes of a regular file.

    Raises: OSError, also if it has more than `most`.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes, the most that is read of such a file", str(path))
    return data


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """The text of a file, as `decoded` finds it; any encoding but UTF-8 is told in the log.

    Raises: OSError, as `read_bytes`; ValueError, as `decoded`.
    """
    text, encoding = decoded(read_bytes(path, most))
    if encoding not in ("utf-8", "utf-8-sig"):
        log.warning("%s is text in %s and is read as such; save it as UTF-8 if its words look wrong", path, encoding)
    return text


def decoded(data: bytes) -> tuple[str, str]:
    """Text and the encoding it was found in: by its byte order mark, as UTF-8, as UTF-16 or by its characters.

    UTF-16 without a mark is known by zero bytes in every other place. Of the old code pages GB18030, Big5, EUC-KR and
    Windows-1252 the one counts in which nearly all characters beyond ASCII are usual ones, if it is the only one: short
    words are often sound in several, and no guess is made then.

    Raises: ValueError, if it is none of these, or could be several.
    """
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    for name in [marked] if marked else [*_pairs(data[:4096]), "utf-8"]:
        try:
            return data.decode(name), name
        except UnicodeDecodeError:
            continue
    likely = [] if marked else [name for name in (*_PAIRS, "cp1252") if _is_likely(data, name)]
    if len(likely) == 1:
        return data.decode(likely[0]), likely[0]
    told = f"could be {' or '.join(likely)}" if likely else "is no UTF-8, nor of another encoding that is known"
    raise ValueError(f"its text {told}; save it as UTF-8")


def parse_xml(text: str) -> ElementTree.Element:
    """The root of an XML text that declares no entities, which could grow without end.

    Raises: ValueError, saying why it is none.
    """
    if "<!DOCTYPE" in text[:_DECLARED] or "<!ENTITY" in text:
        raise ValueError("it declares entities, which none of its kind does")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error


def _pairs(head: bytes) -> list[str]:
    """Which UTF-16 bytes without a mark are, if their zeros say so."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if len(head) < 4 or max(even, odd) < len(head) / 4:
        return []
    return ["utf-16-le" if odd > even else "utf-16-be"]


def _is_likely(data: bytes, name: str) -> bool:
    """Whether nearly all that is beyond ASCII are usual characters of an old code page."""
    try:
        beyond = re.findall(r"[^\0-\x7f]+", data.decode(name))[:4096]
    except UnicodeDecodeError:
        return False
    if name == "cp1252":
        return all(_WESTERN.fullmatch(run) and not _LONG.search(run) for run in beyond)
    characters = "".join(beyond)
    usual = sum(bool(re.fullmatch(_PAIRS[name], character.encode(name))) for character in characters)
    return usual >= _ENOUGH * len(characters)
