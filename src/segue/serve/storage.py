"""Where uploads lie, and whose they are."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import UploadFile

from segue.serve.errors import ApiError
from segue.serve.settings import MIB, Limits
from segue.types import MediaKind

Json = dict[str, Any]


@dataclass(slots=True)
class StoredFile:
    """An upload: whose it is, how it was called, and where its bytes lie, under the name of their SHA-256."""

    owner: str
    name: str
    path: Path
    digest: str
    size: int
    kind: MediaKind
    media: Json
    id: str = field(default_factory=lambda: f"file-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    used: float = field(default_factory=time.monotonic)

    def to_json(self, kept_seconds: float) -> Json:
        """OpenAI's form of a file, with what it shows."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created,
            "expires_at": int(time.time() - (time.monotonic() - self.used) + kept_seconds),
            "filename": self.name,
            "purpose": "user_data",
            "status": "processed",
            "media": self.media,
        }


class FileStore:
    """Uploads of one server, each seen by its owner alone, and forgotten when nobody has used it for a while."""

    def __init__(self, folder: Path, limits: Limits):
        self._folder, self._limits = folder, limits
        self._files: dict[str, StoredFile] = {}

    def add(self, file: StoredFile) -> None:
        """Keep a file."""
        self._files[file.id] = file

    def get(self, owner: str, name: str, param: str | None = None) -> StoredFile:
        """A file of this owner.

        Raises: ApiError, if there is none.
        """
        self.sweep()
        file = self._files.get(name)
        if file is None or file.owner != owner:
            message = "there is no such file; it may have expired: upload it again"
            raise ApiError(404, message, code="no_such_file", param=param)
        file.used = time.monotonic()
        return file

    def owned(self, owner: str) -> list[StoredFile]:
        """All files of an owner, oldest first."""
        self.sweep()
        return [file for file in self._files.values() if file.owner == owner]

    def remove(self, file: StoredFile) -> None:
        """Forget a file; its bytes go when no other upload has the same."""
        self._files.pop(file.id, None)
        self.drop(file.path)

    def drop(self, path: Path) -> None:
        """Remove bytes that no upload has."""
        if all(file.path != path for file in self._files.values()):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Forget what nobody has used for too long."""
        oldest = time.monotonic() - self._limits.kept_seconds
        for file in [file for file in self._files.values() if file.used < oldest]:
            self.remove(file)

    async def write(self, upload: UploadFile) -> tuple[Path, str, int]:
        """Write an upload under the hash of its bytes; the path, the hash and the size.

        Raises: ApiError, if there is no room.
        """
        self.sweep()
        stored = sum({file.path: file.size for file in self._files.values()}.values())
        part, digest, size = self._folder / f"{secrets.token_hex(8)}.part", hashlib.sha256(), 0
        try:
            with part.open("wb") as file:
                while piece := await upload.read(MIB):
                    size += len(piece)
                    if stored + size > self._limits.stored_bytes:
                        raise ApiError(413, "there is no room for more files; delete some", code="storage_full")
                    digest.update(piece)
                    file.write(piece)
            path = self._folder / digest.hexdigest()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path, digest.hexdigest(), size
