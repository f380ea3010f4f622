"""A folder of features on disk, for many readers and writers at once.

    STORE.json                                  what this folder is
    ns/<namespace>/NAMESPACE.json               what the features there are made by, for people
    ns/<namespace>/<kk>/<key>.safetensors       one entry (`segue.features.entries`)
    refs/<dataset>.json                         which entries a dataset uses, for `stats` and `prune`
    stats/<run>.json                            what a run has found and missed
    quarantine/                                 entries that did not agree with their checksums
    tmp/                                        files that are being written

The entries are the truth and the only index: an entry is there when its file is, and it is read by its key. It gets its
name when all of it is on the disk. What cannot be believed is a miss that is counted and reported.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any, Literal

from torch import Tensor

from segue.errors import ConfigError, DataError
from segue.features import entries

FORMAT = 1
MARK = "STORE.json"
ENTRY = ".safetensors"
DAY = 86_400
LEAST_RESERVE = 20 * 1024**3
RESERVED_SHARE = 0.05
Check = Literal["first", "always", "never"]
Absence = Literal["absent", "corrupt"]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry lies: its namespace and its key's hash."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class Found:
    """An entry's file as the folder lists it: its length in bytes, and when it was last used, in seconds."""

    place: Place
    path: Path
    nbytes: int
    used: float


class Store:
    """The entries of a folder, or of an address that fsspec reads (`s3://...`), which is not written to.

    `budget` is how many bytes all entries together may take, `reserve` how many of the disk must stay free (by default
    5 % of it, at least 20 GiB); `evicts` makes room by removing what was used longest ago instead of stopping. `check`
    says when checksums of tensors are computed: at an entry's `first` reading by this process, `always`, or `never`.
    A folder that cannot be written to is read all the same, and `put` says so once; without `writes` nothing is
    written, and a folder that is not there is an empty store.

    Raises: ConfigError, if a folder is something else than a store, or an address cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        budget: int | None = None,
        reserve: int | None = None,
        evicts: bool = False,
        check: Check = "first",
        writes: bool = True,
    ):
        self.root = str(root)
        self.budget, self.reserve, self.evicts, self.check, self.writes = budget, reserve, evicts, check, writes
        self.remote = _remote(self.root) if "://" in self.root else None
        self.folder = Path(self.root)
        self.problems: list[str] = []
        """Why entries were not written or not believed, each said once, for reports."""
        self.is_full = False
        self._checked: set[Place] = set()
        self._bad: set[Place] = set()
        if self.remote is None:
            self._open()

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file; give a folder for the feature cache")
        mark = self.folder / MARK
        content = _json(mark)
        if content is not None and content.get("format") == FORMAT:
            return
        if mark.exists() or (self.folder / "ns").is_dir():
            if content is not None and isinstance(content.get("format"), int) and content.get("segue") == "features":
                raise ConfigError(
                    f"{self.folder} is a feature store of format {content['format']}; this reads {FORMAT}"
                )
            self.tell(f"{mark} was damaged or missing and is written anew; the entries speak for themselves")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} holds other files and is no feature store; give an empty or new folder")
        self._writing(lambda: _write_json(mark, {"segue": "features", "format": FORMAT}))

    def path(self, place: Place) -> Path:
        """Where the file of an entry is, or would be."""
        return self.folder / "ns" / place.namespace / place.key[:2] / f"{place.key}{ENTRY}"

    def has(self, place: Place) -> bool:
        """Whether an entry is there; it is not read."""
        if place in self._bad:
            return False
        if self.remote is not None:
            return bool(self.remote.exists(self._address(place)))
        return self.path(place).is_file()

    def get(self, place: Place) -> entries.Content | Absence:
        """An entry, or why there is none. A damaged one is put into quarantine and said once."""
        if place in self._bad:
            return "corrupt"
        check = self.check == "always" or (self.check == "first" and place not in self._checked)
        try:
            content = self._read(place, check)
        except FileNotFoundError:
            return "absent"
        except DataError as error:
            self.quarantine(place, str(error))
            return "corrupt"
        except OSError as error:
            # a bad sector, a share that went away: as good as damaged, but nothing to move
            self._bad.add(place)
            self.tell(f"{self.path(place)} cannot be read ({error.strerror or error}); it is computed anew")
            return "corrupt"
        self._checked.add(place)
        return content

    def _read(self, place: Place, check: bool) -> entries.Content:
        if self.remote is not None:
            data = self.remote.cat_file(self._address(place))
            content = entries.read(io.BytesIO(data), len(data), check=check)
        else:
            path = self.path(place)
            with path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                content = entries.read(file, status.st_size, check=check)
                with suppress(OSError):  # when it was last used is worth nothing where it cannot be written
                    os.utime(path, ns=(int(time() * 1e9), status.st_mtime_ns))
        if content.facts.get("key") != place.key:
            raise DataError(f"it is the entry {str(content.facts.get('key'))[:16]} under another name")
        return content

    def head(self, place: Place) -> entries.Head:
        """What an entry says of itself, without reading a tensor.

        Raises: DataError, if it is damaged; FileNotFoundError.
        """
        with self.path(place).open("rb") as file:
            return entries.read_head(file, os.fstat(file.fileno()).st_size)

    def quarantine(self, place: Place, why: str) -> None:
        """Take an entry out of use; it stays in `quarantine/` to be looked at."""
        path = self.path(place)
        self._bad.add(place)
        self.tell(f"{path} is damaged: {why}; it is set aside and computed anew")
        if self.remote is not None:
            return
        target = self.folder / "quarantine" / f"{place.namespace}-{place.key}-{secrets.token_hex(4)}{ENTRY}"

        def move() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process was faster
                path.replace(target)
            self._bad.discard(place)

        self._writing(move)

    def put(self, place: Place, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """Keep an entry, atomically; returns its bytes, or 0 if it was there or could not be kept (said once why).

        Nothing is seen of it until all of it is on the disk and was read back.
        """
        if self.remote is not None:
            self.tell(f"{self.root} is an address, which is only read; features computed now are not kept")
            return 0
        if self.has(place):
            return 0
        need = entries.file_size(sum(tensor.nbytes for tensor in tensors.values()))
        if not self._has_room(need):
            return 0
        path, temporary = self.path(place), self.folder / "tmp" / secrets.token_hex(12)
        written = 0

        def publish() -> None:
            nonlocal written
            temporary.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                length = entries.write(file, {**facts, "key": place.key}, tensors)
            with temporary.open("rb", buffering=0) as file:
                entries.read(file, length)
            temporary.replace(path)
            _sync(path.parent)
            written = length

        try:
            self._writing(publish)
        except DataError as error:
            self.tell(f"what was just written to {self.folder} reads back damaged ({error}); check the disk")
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if written:
            self._checked.add(place)
        return written

    def _has_room(self, need: int) -> bool:
        if self.is_full or not self.folder.is_dir():
            return False
        over = self.shortage(need)
        if over > 0 and self.evicts:
            over -= self.evict(over)
        if over > 0:
            self.is_full = True
            limit = f"its budget of {self.budget} bytes" if self.budget is not None else "the space to be left free"
            self.tell(f"the feature cache {self.folder} has reached {limit}; what is computed from now on is not kept")
        return over <= 0

    def shortage(self, need: int) -> int:
        """How many bytes too few there are for so many more; 0 or less if they fit."""
        there = next(one for one in (self.folder, *self.folder.absolute().parents) if one.is_dir())
        disk = shutil.disk_usage(there)
        reserve = max(int(disk.total * RESERVED_SHARE), LEAST_RESERVE) if self.reserve is None else self.reserve
        on_disk = need + reserve - disk.free
        if self.budget is None:
            return on_disk
        return max(on_disk, need + sum(found.nbytes for found in self.entries()) - self.budget)

    def evict(self, nbytes: int) -> int:
        """Remove what was used longest ago until so many bytes are free; returns how many are.

        What a pinned dataset refers to stays.
        """
        kept = {place for ref in self.refs() if ref.get("pinned") for place in _places(ref)}
        freed = 0
        for found in sorted(self.entries(), key=lambda found: found.used):
            if freed >= nbytes:
                break
            if found.place not in kept:
                freed += self.remove(found)
        return freed

    def remove(self, found: Found) -> int:
        """Remove an entry's file; returns its bytes, or 0 if another process did. Who is reading it reads on."""
        with suppress(FileNotFoundError):
            found.path.unlink()
            return found.nbytes
        return 0

    def entries(self, namespace: str | None = None) -> Iterator[Found]:
        """All entries as the folder lists them; none is opened."""
        for space in [namespace] if namespace else self.namespaces():
            for shelf in _scan(self.folder / "ns" / space):
                if not shelf.is_dir():
                    continue
                for file in _scan(Path(shelf.path)):
                    with suppress(FileNotFoundError):
                        if file.name.endswith(ENTRY):
                            status = file.stat()
                            place = Place(space, file.name.removesuffix(ENTRY))
                            yield Found(place, Path(file.path), status.st_size, status.st_atime)

    def namespaces(self) -> list[str]:
        """The names of the namespaces there are."""
        return sorted(entry.name for entry in _scan(self.folder / "ns") if entry.is_dir())

    def describe(self, namespace: str) -> dict[str, Any] | None:
        """What a namespace's features are made by; `None` if nobody wrote it down, or it was damaged."""
        return _json(self.folder / "ns" / namespace / "NAMESPACE.json")

    def write_namespace(self, namespace: str, identity: Mapping[str, Any]) -> None:
        """Write down, for people, what a namespace's features are made by. Nothing is decided by it."""
        path = self.folder / "ns" / namespace / "NAMESPACE.json"
        if self.remote is None and _json(path) != identity:
            self._writing(lambda: _write_json(path, identity))

    def refs(self) -> list[dict[str, Any]]:
        """The datasets that were built into this store, each with its entries; damaged ones are left out."""
        found = [_json(path) for path in sorted((self.folder / "refs").glob("*.json"))]
        return [ref for ref in found if ref is not None and isinstance(ref.get("entries"), list)]

    def write_ref(
        self, dataset: str, namespace: str, keys: Sequence[str], *, pinned: bool = False, shard: str = ""
    ) -> None:
        """Write down which entries of a namespace a dataset, or a shard of it, uses; `pinned` ones are not evicted."""
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in dataset).lstrip(".")
        path = self.folder / "refs" / f"{name}--{namespace}{'-' * bool(shard)}{shard}.json"
        content = {"dataset": dataset, "namespace": namespace, "pinned": pinned, "entries": sorted(set(keys))}
        self._writing(lambda: _write_json(path, content))

    def write_stats(self, run: str, content: Mapping[str, Any]) -> None:
        """Write down what a run has found and missed, in place of what it wrote before."""
        if self.remote is None:
            self._writing(lambda: _write_json(self.folder / "stats" / f"{run}.json", content))

    def stats(self) -> list[dict[str, Any]]:
        """What runs have found and missed, the oldest first."""
        found = [_json(path) for path in (self.folder / "stats").glob("*.json")]
        return sorted((one for one in found if one is not None), key=lambda one: str(one.get("started", "")))

    def clean(self) -> int:
        """Remove what killed writers left behind, once it is a day old; returns how many files."""
        count = 0
        for file in _scan(self.folder / "tmp"):
            with suppress(FileNotFoundError):
                if time() - file.stat().st_mtime > DAY:
                    Path(file.path).unlink()
                    count += 1
        return count

    def _address(self, place: Place) -> str:
        return f"{self.root.rstrip('/')}/ns/{place.namespace}/{place.key[:2]}/{place.key}{ENTRY}"

    def tell(self, text: str) -> None:
        """Say a problem once, and keep it for reports."""
        if text not in self.problems:
            self.problems.append(text)
            log.warning("%s", text)

    def _writing(self, action: Any) -> None:
        """Do something that writes. A disk that is full or read-only is said once and ends no run."""
        if not self.writes:
            return
        try:
            action()
        except OSError as error:
            if error.errno in FULL:
                self.is_full = True
            self.tell(f"the feature cache {self.folder} cannot be written ({error.strerror or error}); it is only read")


def _remote(root: str) -> Any:
    import fsspec

    try:
        files, _ = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError, OSError) as error:
        raise ConfigError(f"{root} cannot be read as a feature cache: {error}") from error
    return files


def _places(ref: Mapping[str, Any]) -> Iterator[Place]:
    for key in ref["entries"]:
        yield Place(str(ref.get("namespace")), str(key))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        return list(found)
    return []


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.json")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make sure that a new name in a folder is on the disk, where a system has that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
