"""What clients have sent to be kept: uploads, sessions, named pictures, in a folder that replicas may share."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastapi import UploadFile

from segue.serve.errors import ApiError
from segue.serve.settings import MIB, Limits

Json = dict[str, Any]
Sort = Literal["file", "video", "named"]
"""Uploads, video sessions, and what clients have named by a `uuid`; each begins its ids."""

_ID = re.compile(r"(?:file|video|named)-[0-9a-f]{32}")
_GONE = {
    "file": ("no_such_file", "there is no such file; it may have expired: upload it again"),
    "video": ("no_such_session", "there is no such session; it may have expired"),
    "named": ("no_such_media", "nothing is kept under this uuid; send it again"),
}


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that a client has sent: where they lie, their SHA-256, and how many there are."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that are kept, as a record in JSON beside them says: whose they are, and what else is known of them."""

    id: str
    owner: str
    digest: str
    size: int
    created: int
    about: Json


class FileStore:
    """What is kept, each seen by its owner alone, and forgotten when nobody has used it for a while.

    All that is known lies in the folder, so that replicas that share it know the same, and a new one what those before
    it knew. The time of a file is when it was last used.
    """

    def __init__(self, folder: Path, limits: Limits):
        self._folder, self._limits = folder, limits

    def path(self, kept: Kept) -> Path:
        """Where the bytes lie: under their hash, and under no name of a client's."""
        return self._folder / f"{kept.digest}-{kept.id}"

    def get(self, owner: str, name: str, sort: Sort = "file", param: str | None = None) -> Kept:
        """What this owner has kept under an id, used now.

        Raises: ApiError, if there is nothing.
        """
        kept = self._read(name) if _ID.fullmatch(name) and name.startswith(sort) else None
        if kept is not None and self.used(kept) < self._oldest():
            self.remove(kept)
            kept = None
        if kept is None or kept.owner != owner:
            code, message = _GONE[sort]
            raise ApiError(404, message, code=code, param=param)
        self.touch(kept)
        return kept

    def all(self, sort: Sort) -> list[Kept]:
        """All of a sort that nobody has forgotten, oldest first."""
        self._sweep()
        found = [self._read(path.stem) for path in self._folder.glob(f"{sort}-*.json")]
        return sorted((kept for kept in found if kept is not None), key=lambda kept: (kept.created, kept.id))

    def used(self, kept: Kept) -> float:
        """When it was used last, in seconds since 1970; 0 if it is gone."""
        try:
            return self._record(kept.id).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def touch(self, kept: Kept) -> None:
        """Note that it is in use."""
        for path in (self._record(kept.id), self.path(kept)):
            with suppress(FileNotFoundError):
                os.utime(path)

    def hold(self, kept: Kept) -> Path:
        """Note, for all replicas, that a request is at work on it, until the file at this path is removed."""
        mark = self._folder / f"{kept.id}.{secrets.token_hex(8)}.held"
        mark.touch()
        return mark

    def is_held(self, kept: Kept) -> bool:
        """Whether a request is at work on it."""
        return any(self._folder.glob(f"{kept.id}.*.held"))

    def remove(self, kept: Kept) -> None:
        """Forget it."""
        self._record(kept.id).unlink(missing_ok=True)
        self.path(kept).unlink(missing_ok=True)

    def keep(self, sent: Sent, owner: str, about: Json, *, id: str) -> Kept:
        """Keep what was sent, under a new id or in the place of what had it."""
        kept, before = Kept(id, owner, sent.digest, sent.size, int(time.time()), about), self._read(id)
        sent.path.replace(self.path(kept))
        self._write(kept)
        if before is not None and before.digest != kept.digest:
            self.path(before).unlink(missing_ok=True)
        return kept

    def update(self, kept: Kept, about: Json) -> Kept:
        """Know something else of it."""
        changed = replace(kept, about=about)
        self._write(changed)
        return changed

    @contextmanager
    def sending(self) -> Iterator[Path]:
        """A path for what is being sent; what still lies there at the end is dropped."""
        part = self._folder / f"{secrets.token_hex(8)}.part"
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    async def write(self, upload: UploadFile, path: Path) -> Sent:
        """Write an upload to a path.

        Raises: ApiError, if there is no room.
        """
        room, digest, size = self._room(), hashlib.sha256(), 0
        with path.open("wb") as file:
            while piece := await upload.read(MIB):
                size += len(piece)
                _check(size, room)
                digest.update(piece)
                file.write(piece)
        _check(0, self._free())  # others may have come meanwhile
        return Sent(path, digest.hexdigest(), size)

    def put(self, data: bytes, path: Path) -> Sent:
        """Write bytes to a path.

        Raises: ApiError, if there is no room.
        """
        _check(len(data), self._room())
        path.write_bytes(data)
        return Sent(path, hashlib.sha256(data).hexdigest(), len(data))

    def link(self, kept: Kept, path: Path) -> Sent:
        """Have the bytes of what is kept at a path too, where they take no room."""
        os.link(self.path(kept), path)
        return Sent(path, kept.digest, kept.size)

    def _record(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _read(self, name: str) -> Kept | None:
        try:
            return Kept(**json.loads(self._record(name).read_text()))
        except FileNotFoundError:
            return None

    def _write(self, kept: Kept) -> None:
        with self.sending() as part:
            part.write_text(json.dumps(asdict(kept)))
            part.replace(self._record(kept.id))

    def _room(self) -> int:
        """Bytes that may still be kept, once what is to be forgotten has gone."""
        self._sweep()
        return self._free()

    def _free(self) -> int:
        sizes = {}
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                sizes[found.st_ino] = found.st_size
        return self._limits.stored_bytes - sum(sizes.values())

    def _oldest(self) -> float:
        return time.time() - self._limits.kept_seconds

    def _sweep(self) -> None:
        """Forget what nobody has used for too long, and what somebody has left behind."""
        oldest = self._oldest()
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def new_id(sort: Sort) -> str:
    """An id that nobody guesses."""
    return f"{sort}-{secrets.token_hex(16)}"


def named_id(client: str, uuid: str) -> str:
    """The id of what a client has named so."""
    return f"named-{hashlib.sha256(json.dumps([client, uuid]).encode()).hexdigest()[:32]}"


def _check(size: int, room: int) -> None:
    if size > room:
        raise ApiError(413, "there is no room for more files; delete some", code="storage_full")
