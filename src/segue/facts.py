"""What was found out about files by reading them, such as their hashes: remembered while the files do not change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

from segue.errors import MediaError
from segue.files import atomic_path

SETTLED = 2.0
"""Seconds for which a file must have been left alone before what was found out about it is remembered: what changes
twice within one tick of a file system's clock looks unchanged. A file that is dated in the future never is."""


class FileFacts:
    """What was found out about files by reading them, remembered so that it need not be found out again.

    A file is known again by path, size, inode and both of its times; whoever replaces it changes one of them. Without
    a `folder` facts are remembered as long as this object lives.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._values: dict[str, Any] = {}

    def hash(self, path: Path) -> str:
        """The SHA-256 of a file's bytes, in hexadecimal.

        Raises: OSError, if it cannot be read.
        """
        return str(self.of(path, "sha256", lambda: file_hash(path)))

    def once(self, path: Path, what: str, do: Callable[[], None]) -> bool:
        """Do something with a file that need not be done again while it does not change, and say whether it was done.

        Raises: OSError, if there is no such file; what `do` raises, which is not remembered.
        """
        found: list[bool] = []

        def find() -> bool:
            do()
            found.append(True)
            return True

        self.of(path, what, find)
        return bool(found)

    def of(self, path: Path, what: str, find: Callable[[], Any]) -> Any:
        """A fact about a file, as plain JSON: remembered, or found now. `what` says which.

        Raises: OSError, if there is no such file; what `find` raises.
        """
        before = path.stat()
        who = (before.st_size, before.st_ino, before.st_mtime_ns, before.st_ctime_ns)
        name = hashlib.sha256(f"{what}\n{path.resolve()}\n{who}".encode(errors="surrogatepass")).hexdigest()
        known = self._known(name)
        if known is not None:
            return known
        found, after = find(), path.stat()
        is_same = who == (after.st_size, after.st_ino, after.st_mtime_ns, after.st_ctime_ns)
        if is_same and max(before.st_mtime, before.st_ctime) + SETTLED < time():
            self._remember(name, found)
        return found

    def _known(self, name: str) -> Any:
        if self.folder is None:
            return self._values.get(name)
        with suppress(OSError, ValueError, KeyError, TypeError):
            row = json.loads((self.folder / name[:2] / name).read_text(encoding="ascii"))
            # a row that a bit has turned in says nothing
            if row["check"] == _check(name, row["value"]):
                return row["value"]
        return None

    def _remember(self, name: str, value: Any) -> None:
        if self.folder is None:
            self._values[name] = value
            return
        path = self.folder / name[:2] / name
        with suppress(OSError, MediaError):  # a folder that is only read costs the finding out, nothing else
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({"value": value, "check": _check(name, value)}), encoding="ascii")


def of_this_user() -> FileFacts:
    """The facts that all commands of this user share, in his folder for caches: `segue/files` there."""
    try:
        return FileFacts(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue" / "files")
    except RuntimeError:  # a user without a home
        return FileFacts()


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes as they are now, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(name: str, value: Any) -> str:
    return hashlib.sha256(f"{name} {json.dumps(value)}".encode()).hexdigest()[:16]
