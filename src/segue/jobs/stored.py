"""Inputs that lie in an object store: what a URL names there, and a copy of one for as long as it is worked on.

fsspec reads them, with the package and the credentials that the user has for the store. Only what a person gives as
INPUT comes here, no path in a dataset, a checkpoint or a request.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from segue.errors import ConfigError, MediaError, SegueError
from segue.files import PART
from segue.media.limits import DEFAULT_LIMITS

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""The stores that are read, by how their URLs begin, and the package that reads each."""

_URL = re.compile(rf"(?s)({'|'.join(PACKAGES)})://[^/*?\[]+(/.*)?")
_SIGNS = ("ETag", "etag", "mtime")  # as the stores' packages call a sign of the content, or the time of its change
_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in an object store, by its URL, or what the store has listed as a folder; `listed` is the stamp that the
    store has listed it with.
    """

    url: str
    listed: str = field(default="", compare=False)
    is_folder: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its URL."""
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        return PurePosixPath(self.url).stem

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.url).suffix

    def is_dir(self) -> bool:
        """Whether it is known to be a folder."""
        return self.is_folder

    def place(self, out: Path) -> Path:
        """Where its copy goes: a hidden folder of its own in the output folder, where the next run removes what a
        killed one leaves. The copy has its name, if a file can have that.
        """
        folder = out / f"{PART}{hashlib.sha256(os.fsencode(self.url)).hexdigest()[:16]}"
        is_usable = re.fullmatch(r"[^/\\\0]+", self.name) and self.name != ".." and len(os.fsencode(self.name)) <= 255
        return folder / (self.name if is_usable else "input")

    def stamp(self) -> str:
        """A cheap sign of whether it has changed since: its size, and the store's mark of its content.

        Raises: MediaError, if there is no such file; ConfigError, without the store's package.
        """
        return self.listed or _stamp(_facts(self.url))

    @contextmanager
    def copied(self, path: Path) -> Iterator[str]:
        """Its copy is at `path` meanwhile, in a folder that is made and removed; gives the stamp it had before.

        Raises: MediaError, if it cannot be read, or changes; LimitError; ConfigError, without the store's package;
        OSError, if the disk cannot take it.
        """
        facts = _facts(self.url)
        DEFAULT_LIMITS.check_bytes(self.url, facts["size"])
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        try:
            with path.open("wb") as copy:
                for block in _blocks(self.url):
                    copy.write(block)
                    if copy.tell() > facts["size"]:
                        break
            if path.stat().st_size != facts["size"]:
                raise MediaError(f"{self.url} changed, or was cut off, while it was copied; run the same command again")
            yield self.listed or _stamp(facts)
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)


Source = Path | Stored
"""Where an input lies."""


def is_url(text: str) -> bool:
    """Whether a text is a URL of a store that is read."""
    return _URL.fullmatch(text) is not None


def entries(url: str) -> list[Stored] | None:
    """What lies directly in a folder of a store, or what a pattern matches; None of a file.

    Raises: MediaError, if there is nothing, or it cannot be listed; ConfigError, without the store's package.
    """
    with _told(url):
        files, path = _opened(url)
        if glob.has_magic(url) and not files.exists(path):
            # by its keys: older versions of fsspec give the outer path as the name in a store within another one
            found = [{**facts, "name": name} for name, facts in files.glob(path, detail=True).items()]
        elif files.info(path)["type"] != "directory":
            return None
        else:
            found = [one for one in files.ls(path, detail=True) if one["name"].strip("/") != path.strip("/")]
        files.invalidate_cache()  # a later look must see what has changed
    scheme, _, bucket = url.split("/")[:3]

    def entry(facts: Mapping[str, Any]) -> Stored:
        key = facts["name"].strip("/").partition("/")[2]
        return Stored(f"{scheme}//{bucket}/{key}", _stamp(facts), facts["type"] == "directory")

    return [entry(facts) for facts in found]


def _opened(url: str) -> tuple[Any, str]:
    """A store, and the path there."""
    if not is_url(url) or "::" in url:
        raise MediaError(f"{url} is no URL of a file in an object store; expected one such as s3://bucket/name, no ::")
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES[url.partition(":")[0]]
        raise ConfigError(f"{url} is read by {package}, which is missing: pip install {package}") from error
    return files, path


def _facts(url: str) -> dict[str, Any]:
    """What a store says of a file."""
    with _told(url):
        files, path = _opened(url)
        facts: dict[str, Any] = files.info(path)
    if facts["type"] == "directory":
        raise MediaError(f"{url} is a folder; in a list it ends with /")
    return facts


def _blocks(url: str) -> Iterator[bytes]:
    with _told(url):
        files, path = _opened(url)
        with files.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                yield block


def _stamp(facts: Mapping[str, Any]) -> str:
    sign = next((facts[sign] for sign in _SIGNS if facts.get(sign)), "")
    return f"{facts['size']}-{str(sign).strip(chr(34))}"


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What a store's package raises, which may be anything, as an error that names the file."""
    try:
        yield
    except SegueError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"{url} does not exist") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise MediaError(f"{url} cannot be read: {type(error).__name__}: {reason}") from error
