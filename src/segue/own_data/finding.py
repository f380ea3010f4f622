"""Where the medium that an annotation names lies, however its tool has written the path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from segue.data.annotation_io import MissingFileError
from segue.errors import MediaError
from segue.media.folder import folded, is_hidden
from segue.media.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""
_MOST_FILES = 2_000_000
_SHOWN = 4
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")


def locate(folders: Sequence[Path], *names: str) -> Path:
    """The file or folder of the first of these names that can be found in the folders, or below them.

    A path as it is written counts first, in the order of the folders, then with its %20 read as blanks. Backslashes,
    drives, absolute paths, `..` and folders of another machine are no hindrance: what lies below the folders is found
    by the longest ending of the path that it shares. A name without an ending fits a file that has one, and upper case
    fits lower. Nothing outside the folders is ever given.

    Raises: MediaError, if there is no such file, or several that fit equally well, which are listed.
    """
    names = tuple(dict.fromkeys((*names, *map(unquote, names))))
    for name in names:
        parts = _parts(name)
        for folder in folders if parts else ():
            try:
                if (path := folder.joinpath(*parts)).exists():
                    return path
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise MissingFileError(f"the file {name[:60]!r} cannot be looked for: {reason}") from error
    for name in names:
        if (found := _by_ending(folders, name)) is not None:
            return found
    places = ", ".join(dict.fromkeys(map(str, folders)))
    raise MissingFileError(f"there is no {' or '.join(names)} in {places}, nor below")


def files_below(folder: Path) -> Iterator[Path]:
    """The files below a folder, hidden ones and those of hidden folders aside, in the order of their names.

    A linked folder is gone into, as data often lie on another disk; not one that lies in this folder, which would come
    twice, or around it, which would never end.
    """
    yield from _walked(folder, (folder.resolve(),))


def split_words(name: str) -> Iterator[str]:
    """The folders of a path, the innermost first, without what stands before `..` or a drive."""
    yield from reversed(_parts(name)[:-1])


def _parts(name: str) -> tuple[str, ...]:
    """A path's parts, none of which leads out of where it begins."""
    path = name.replace("\\", "/")
    if "://" in path:
        path = unquote(urlparse(path).path)
    parts = [part for part in re.sub(r"^[A-Za-z]:", "", path).split("/") if part not in ("", ".")]
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    return tuple(parts)


def _by_ending(folders: Sequence[Path], name: str) -> Path | None:
    """The one file whose path shares the longest ending with a name.

    Raises: MediaError, if several do.
    """
    parts = _parts(name)
    if not parts:
        return None
    found: dict[Path, int] = {}
    for folder in dict.fromkeys(folders):
        for wanted in dict.fromkeys((parts[-1], UPLOADED.sub("", parts[-1]))):
            for path in _named(folder, wanted):
                found.setdefault(path, _shared((*parts[:-1], wanted), path))
            if found:
                break
    best = [path for path, shared in found.items() if shared == max(found.values())]
    if len(best) > 1:
        listed = ", ".join(map(str, best[:_SHOWN])) + (" ..." if len(best) > _SHOWN else "")
        raise MissingFileError(f"{name} could be any of {listed}; name it with the folder that it lies in")
    return best[0] if best else None


def _named(folder: Path, wanted: str) -> list[Path]:
    try:
        index = _index(folder, folder.stat().st_mtime_ns)
    except OSError:
        return []
    key = folded(wanted)
    return index.get(key, []) or ([] if _SUFFIX.search(wanted) else index.get(f"{key}.", []))


def _walked(place: Path, known: tuple[Path, ...]) -> Iterator[Path]:
    """The files below a place; `known` are the folders that are gone through, whose parts come without links."""
    try:
        there = sorted(os.scandir(place), key=lambda one: one.name)
    except OSError:
        return
    for one in there:
        if is_hidden(one.name):
            continue
        if not one.is_dir():
            yield Path(one.path)
        elif not one.is_symlink():
            yield from _walked(Path(one.path), known)
        else:
            real = Path(one.path).resolve()
            if not any(real.is_relative_to(other) or other.is_relative_to(real) for other in known):
                yield from _walked(Path(one.path), (*known, real))


@lru_cache(maxsize=16)
def _index(folder: Path, _: int) -> dict[str, list[Path]]:
    """The files below a folder by name in lower case, and media under the name without its ending and with a dot.

    Made once for a folder as it was changed last, because a folder of missing files would be gone through for each.
    """
    index: dict[str, list[Path]] = {}
    for count, path in enumerate(files_below(folder), start=1):
        if count > _MOST_FILES:
            raise MediaError(f"{folder} holds more than {_MOST_FILES:,} files; give a smaller folder")
        if "masks" in path.relative_to(folder).parts[:-1]:
            continue
        index.setdefault(folded(path.name), []).append(path)
        if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            index.setdefault(f"{folded(path.stem)}.", []).append(path)
    return index


def _shared(parts: Sequence[str], path: Path) -> int:
    """How many parts at the end of a path are as the name has them, the last one aside."""
    count = 0
    # as far as both go
    for wanted, there in zip(reversed(parts[:-1]), reversed(PurePosixPath(path.parent).parts), strict=False):
        if folded(wanted) != folded(there):
            break
        count += 1
    return count
