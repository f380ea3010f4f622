"""What a medium is, by its content: the hash that stands in a key, whatever the file is called and wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from segue.errors import MediaError
from segue.facts import FileFacts
from segue.types import Media


class Sources:
    """Hashes of media. Those of files are remembered (`segue.facts.FileFacts`), so that a second run does not read them
    again.
    """

    def __init__(self, folder: Path | None = None):
        self.facts = FileFacts(folder)

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
                return _joined(self.facts.hash(path) for path in _pictures(source))
            return self.facts.hash(source)
        except OSError as error:
            raise MediaError(f"{source} cannot be read: {error.strerror or error}") from error


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _pictures(source: Path) -> Iterator[Path]:
    from segue.media.folder import frame_files

    yield from frame_files(source)
