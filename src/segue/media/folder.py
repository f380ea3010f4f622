"""Folders of numbered pictures, read as videos."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from segue.errors import MediaError
from segue.media.formats import IMAGE_SUFFIXES

_HIDDEN = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "#recycle", "icon\r")

_NUMBERED = re.compile(r"(.*?)(\d+)")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems and tools leave behind, as `._x.json` or `.ipynb_checkpoints`."""
    return name.startswith(".") or name.lower() in _HIDDEN


def composed(name: str) -> str:
    """A name with its accents composed, which macOS takes apart."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name with its accents composed and without case."""
    return composed(name).casefold()


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder such as 00000.jpg, 00001.jpg ..., ordered by number; a frame is called by its place.

    Numbers may have gaps, start anywhere and need no leading zeros; one prefix (`frame_7.png`) may stand before them.
    Hidden files, sub-folders and files that are no pictures do not count.

    Raises: MediaError, if there is no picture, if a name has no number or another prefix, or if a number comes twice.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise MediaError(f"cannot read the folder {folder}: {error.strerror}") from error
    numbered: dict[int, Path] = {}
    prefixes: dict[str, Path] = {}
    for path in sorted(file for file in files if not is_hidden(file.name)):
        if not (match := _NUMBERED.fullmatch(path.stem)):
            raise MediaError(f"{path} is no frame of a video: its name does not end in a number such as 00000.jpg")
        prefixes.setdefault(match[1], path)
        if first := numbered.get(int(match[2])):
            raise MediaError(f"{folder} has two frames with one number, {first.name} and {path.name}; remove one")
        numbered[int(match[2])] = path
    if not numbered:
        raise MediaError(f"{folder} has no frames; expected pictures named by number such as 00000.jpg, 00001.jpg")
    if len(prefixes) > 1:
        names = " and ".join(path.name for path in list(prefixes.values())[:2])
        raise MediaError(f"{folder} mixes frames of several videos ({names}); give each video a folder of its own")
    return [numbered[number] for number in sorted(numbered)]
