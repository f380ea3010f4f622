"""What a medium is, by its content: the hash that stands in a key, whatever the file is called and wherever it lies."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import time

import numpy as np

from segue.errors import MediaError
from segue.types import Media

SETTLED = 2.0
"""Seconds for which a file must have been left alone before its hash is remembered: what changes twice within one tick
of a file system's clock looks unchanged. A file that is dated in the future is never remembered."""


class Sources:
    """Hashes of media. Those of files are remembered in a folder, so that a second run does not read them again.

    A file is known again by path, size, inode and both of its times; whoever replaces it changes one of them. Without
    a `folder` they are remembered as long as this object lives.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._hashes: dict[str, str] = {}

    def hash(self, media: Media) -> str:
        """The SHA-256 of a medium's content, in hexadecimal: of a file's bytes, of a folder's pictures in their order,
        or of an array with its shape.

        Raises: MediaError, if it cannot be read.
        """
        source = media.source
        if isinstance(source, np.ndarray):
            shape = f"{source.dtype} {source.shape}\n".encode()
            return hashlib.sha256(shape + np.ascontiguousarray(source).tobytes()).hexdigest()
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        try:
            if source.is_dir():
                return _joined(self._file(path) for path in _pictures(source))
            return self._file(source)
        except OSError as error:
            raise MediaError(f"{source} cannot be read: {error.strerror or error}") from error

    def _file(self, path: Path) -> str:
        status = path.stat()
        touched = max(status.st_mtime, status.st_ctime)
        who = f"{path.resolve()}\n{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        name = hashlib.sha256(who.encode()).hexdigest()
        known = self._known(name)
        if known is not None:
            return known
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        after = path.stat()
        is_same = (after.st_size, after.st_mtime_ns, after.st_ino) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        )
        if is_same and touched + SETTLED < time():
            self._remember(name, found)
        return found

    def _known(self, name: str) -> str | None:
        if self.folder is None:
            return self._hashes.get(name)
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.folder / name[:2] / name).read_text(encoding="ascii"))
            # a row that a bit has turned in says nothing
            if found["check"] == _row_check(name, found["sha256"]):
                return str(found["sha256"])
        return None

    def _remember(self, name: str, found: str) -> None:
        if self.folder is None:
            self._hashes[name] = found
            return
        path = self.folder / name[:2] / name
        with suppress(OSError):  # a folder that is only read costs the hashing, nothing else
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{secrets.token_hex(6)}")
            temporary.write_text(json.dumps({"sha256": found, "check": _row_check(name, found)}), encoding="ascii")
            temporary.replace(path)


def _row_check(name: str, found: str) -> str:
    return hashlib.sha256(f"{name} {found}".encode()).hexdigest()[:16]


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _pictures(source: Path) -> Iterator[Path]:
    from segue.media.folder import frame_files

    yield from frame_files(source)
