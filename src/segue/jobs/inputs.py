"""What a person means by INPUT: a file, a folder, a pattern or a list, here or in an object store; and what tells one
source from another.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from segue.errors import DataError, MediaError
from segue.jobs import stored
from segue.jobs.stored import Source, Stored
from segue.media import formats
from segue.media.folder import is_hidden
from segue.media.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from segue.reading import at_home, open_regular, read_text, refuse_url

FolderKind = Literal["auto", "images", "video"]

SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
"""Endings by which a folder's images and videos are known; a file that is named outright may have any."""

_LONGEST = 60  # characters of a stem
_MOST_BYTES = 240  # of a name, to which something is put while it is written
_FRAME_SUFFIXES = IMAGE_SUFFIXES - {".gif"}
_NOTES = frozenset(
    {".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log", ".py", ".pdf", ".zip"}
)
_MOST_LIST = 100_000_000  # bytes of a list of paths


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a folder that is not taken as an input, and why; `is_bad`, if it looks like an image or video."""

    path: Source
    reason: str
    is_bad: bool


def find(given: str, *, folder_kind: FolderKind = "auto", skipped: list[Skipped] | None = None) -> list[Source]:
    """The sources that INPUT stands for, without repeats, each an image, a video or a frame folder, by its absolute
    path, or by its URL in an object store.

    A file is taken as it is, whatever its name says; a `.txt` file lists one path per line, from the list's own
    folder, blank lines and lines that begin with # aside. A folder gives the images, videos and frame folders directly
    in it, unless it is a frame folder itself; a pattern gives its matches. Both go by name with numbers counted (2
    before 10). `folder_kind` overrules `is_frame_folder`: with "video" every folder is a frame folder, with "images"
    none is. Listed files need not exist: whoever opens them reports each. A file without a known ending is an input if
    it is an image by its content. What of a folder or pattern is left out is added to `skipped`. In a store there are
    no frame folders, endings alone count, and what a list names is a folder if it ends with /.

    Raises: MediaError, if there is nothing of that name or nothing in it; DataError, if a list cannot be read;
    ConfigError, without the package that reads a store.
    """
    try:
        found = _find(given, folder_kind, [] if skipped is None else skipped)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"cannot read {given[:200]!r}: {reason}") from error
    if not found:
        known = " ".join(sorted(SUFFIXES))
        is_list = Path(given).suffix.lower() == ".txt"
        is_pattern = glob.has_magic(given) and not Path(given).exists()
        does = "lists" if is_list else "matches" if is_pattern else "holds"
        raise MediaError(f"{given} {does} no image, video or frame folder; files are known by their endings: {known}")
    whole = (one if isinstance(one, Stored) else one.parent.resolve() / one.name for one in found)
    return list(dict.fromkeys(whole))


def is_frame_folder(path: Path) -> bool:
    """Whether a folder's images are the frames of one video, going by their names alone.

    They are if there are three or more, all named by numbers of one width with one step between them (00000.jpg,
    00005.jpg, 00010.jpg). Photos named by their ids have no such step and stay images.
    """
    return _are_frames([frame.stem for frame in _frames(path)])


def _are_frames(stems: Sequence[str]) -> bool:
    if len(stems) < 3 or not all(re.fullmatch(r"[0-9]+", stem) for stem in stems):
        return False
    numbers = sorted(map(int, stems))
    steps = {after - before for before, after in pairwise(numbers)}
    return len(steps) == 1 and len({len(stem) for stem in stems}) == 1


def stamp(source: Source) -> str:
    """A cheap sign of whether a source has changed since: sizes and times of change, of a folder all its images'."""
    if isinstance(source, Stored):
        return source.stamp()
    if not source.is_dir():
        return _file_stamp(source)
    return digest(*(f"{frame.name} {_file_stamp(frame)}" for frame in _frames(source)))


def content_hash(source: Path) -> str:
    """SHA-256 of a file's bytes; of a frame folder, of the names and hashes of its images in the order of names."""
    if not source.is_dir():
        with open_regular(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return digest(*(f"{frame.name} {content_hash(frame)}" for frame in _frames(source)))


def digest(*lines: str) -> str:
    """SHA-256 of some lines of text, in hex."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def folder_names(
    sources: Sequence[Source], *, known: Mapping[str, str], taken: Iterable[str] = (), asked: Sequence[str] = ()
) -> dict[Source, str]:
    """A result folder's name for each source: its stem; where that is taken with what is asked for behind it, and where
    sources share it with a short hash of path and question.

    `known` maps sources that have a folder already (as text) to its name, which they keep; `taken` names can be
    nobody's. Names that differ only in case count as one, since some file systems think so.
    """
    claims = Counter(_stem(source).casefold() for source in sources)
    refused = {name.casefold() for name in (*known.values(), *taken)}
    names = {}
    words = re.sub(r"[^\w]+", "-", " ".join(asked).lower()).strip("-")[:_LONGEST]
    for source in sources:
        stem = _stem(source)
        is_alone = claims[stem.casefold()] == 1 and len(stem) <= _LONGEST
        cut = os.fsencode(stem[:_LONGEST])[: _MOST_BYTES - 9].decode(errors="ignore")
        unique = f"{cut}-{digest(str(source), *asked)[:8]}"
        wanted = (stem, *([f"{stem}-{words}"] if words else ())) if is_alone else ()
        fitting = (name for name in wanted if len(os.fsencode(name)) <= _MOST_BYTES)
        own = next((name for name in fitting if name.casefold() not in refused), unique)
        names[source] = known.get(str(source), own)
        refused.add(names[source].casefold())
    return names


def _find(given: str, folder_kind: FolderKind, skipped: list[Skipped]) -> Sequence[Source]:
    if stored.is_url(given):
        return _of_store(given, folder_kind, skipped)
    refuse_url(given)
    path = at_home(given)
    if path.suffix.lower() == ".txt" and path.is_file():
        return [source for listed in _read_list(path) for source in _expand(listed, folder_kind, skipped)]
    if path.exists():
        return _expand(path, folder_kind, skipped)
    if glob.has_magic(given):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - pathlib knows no absolute patterns
        return _sources(map(Path, matches), folder_kind, skipped)
    raise MediaError(f"{given} does not exist; give an image, a video, a folder, a quoted pattern or a .txt list")


def _expand(path: Source, folder_kind: FolderKind, skipped: list[Skipped]) -> Sequence[Source]:
    if isinstance(path, Stored):
        return _of_store(path.url, folder_kind, skipped) if path.url.endswith("/") else [path]
    if not path.is_dir() or _is_video_folder(path, folder_kind):
        return [path]
    return _sources(path.iterdir(), folder_kind, skipped)


def _of_store(url: str, folder_kind: FolderKind, skipped: list[Skipped]) -> Sequence[Source]:
    if (entries := stored.entries(url)) is None:
        return [Stored(url)]
    stems = [entry.stem for entry in entries if entry.suffix.lower() in _FRAME_SUFFIXES and not is_hidden(entry.name)]
    if folder_kind == "video" or (folder_kind == "auto" and not glob.has_magic(url) and _are_frames(stems)):
        raise MediaError(
            f"{url} would be a folder of one video's frames, which is not read from a store: copy it to a disk, or "
            "take its images one by one with --as images"
        )
    return _sources(entries, folder_kind, skipped)


def _sources(paths: Iterable[Source], folder_kind: FolderKind, skipped: list[Skipped]) -> list[Source]:
    """Those that are inputs, in order; the others go to `skipped`, hidden ones aside."""
    found = []
    for path in _in_order(path for path in paths if not is_hidden(path.name)):
        left_out = _left_out(path, folder_kind)
        if left_out is None:
            found.append(path)
        else:
            skipped.append(left_out)
    return found


def _left_out(path: Source, folder_kind: FolderKind) -> Skipped | None:
    if path.is_dir():
        is_video = isinstance(path, Path) and _is_video_folder(path, folder_kind)
        return None if is_video else Skipped(path, "a folder is not looked into; give it by its name", is_bad=False)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return None
    if isinstance(path, Stored):
        reason = f"its ending {suffix or '(none)'} is none that is known; give it by its name if it is one all the same"
        return Skipped(path, reason, is_bad=suffix not in _NOTES)
    if formats.is_picture(path):
        return None
    if not path.is_file():
        return Skipped(path, "it is no regular file but a pipe, a device or a socket", is_bad=True)
    reason = f"its ending {path.suffix or '(none)'} is none that is known, and its content is no image that can be read"
    return Skipped(path, reason, is_bad=suffix not in _NOTES and bool(suffix))


def _is_video_folder(path: Path, folder_kind: FolderKind) -> bool:
    return folder_kind == "video" or (folder_kind == "auto" and is_frame_folder(path))


def _read_list(path: Path) -> list[Source]:
    try:
        lines = read_text(path, _MOST_LIST).splitlines()
    except ValueError as error:
        raise DataError(f"{path} is not a list: {error}; write one path per line") from error
    entries = [line.strip() for line in lines]
    if strange := next((number for number, entry in enumerate(entries, start=1) if "\0" in entry), None):
        raise DataError(f"{path} is not a list: line {strange} holds a zero byte; write one path per line")
    return [
        Stored(entry) if stored.is_url(entry) else path.parent / at_home(entry)
        for entry in entries
        if entry and not entry.startswith("#")
    ]


def _frames(folder: Path) -> list[Path]:
    frames = (path for path in folder.iterdir() if path.suffix.lower() in _FRAME_SUFFIXES)
    return sorted(frame for frame in frames if not is_hidden(frame.name) and frame.is_file())


def _in_order(paths: Iterable[Source]) -> list[Source]:
    def key(path: Source) -> list[tuple[int, str]]:
        parts = re.findall(r"[0-9]+|[^0-9]+", str(path))
        return [(int(part), "") if part.isascii() and part.isdecimal() else (-1, part) for part in parts]

    return sorted(paths, key=key)


def _file_stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _stem(source: Source) -> str:
    name = source.name if source.is_dir() else source.stem
    return name.lstrip(".") or "input"
