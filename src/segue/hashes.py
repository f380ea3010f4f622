"""Hashes of files, remembered: a file that has not changed since is not read again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from time import time

SETTLED = 2.0
"""Seconds for which a file must have been left alone before its hash is remembered: what changes twice within one tick
of a file system's clock looks unchanged. A file that is dated in the future is never remembered."""


class FileHashes:
    """SHA-256 of files, remembered in a folder, or without a `folder` as long as this object lives.

    A file is known again by path, size, inode and both of its times; whoever replaces it changes one of them.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._hashes: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """The SHA-256 of a file's bytes, in hexadecimal.

        Raises: OSError, if it cannot be read.
        """
        status = path.stat()
        touched = max(status.st_mtime, status.st_ctime)
        who = f"{path.resolve()}\n{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        name = hashlib.sha256(who.encode()).hexdigest()
        known = self._known(name)
        if known is not None:
            return known
        found = file_hash(path)
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


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes as they are now, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered() -> FileHashes:
    """The hashes that every command of this user shares: in `segue/hashes` of the folder for caches."""
    try:
        return FileHashes(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue" / "hashes")
    except RuntimeError:  # a user without a home
        return FileHashes()


def _row_check(name: str, found: str) -> str:
    return hashlib.sha256(f"{name} {found}".encode()).hexdigest()[:16]
