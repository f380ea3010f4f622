"""What a run over many inputs has finished: `manifest.jsonl`, one line per input, safe against kill -9.

The truth about a finished input is its folder, which appears all at once and holds a `result.json`; the manifest is the
list of them, and of the inputs that failed. Whatever was lost between the two is found again on opening. Shards of a
run keep lists of their own beside it, until a run opens the folder for itself and makes them one.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.errors import ConfigError, DataError, MediaError, SegueError
from segue.files import DISK_ERRORS, OLD, PART, alone, append, mend, recover
from segue.jobs.inputs import folder_names
from segue.jobs.stored import Source
from segue.output.results import FORMAT, RESULT, encode_json
from segue.reading import open_regular

NAME = "manifest.jsonl"
_SHARD_LIST = re.compile(r"manifest-(\d+)-of-(\d+)-([0-9a-f]{16})\.jsonl")

Record = dict[str, Any]
Key = tuple[str, tuple[str, ...]]
"""A source and what was asked of it: results of other questions about the same source stand beside each other."""

REGION = ("phrase", "score", "box", "is_found", "area", "share", "frames")
"""What a record keeps of each region of a `result.json`."""
_OF_RESULT = {"source", "settings", "fingerprint", "seconds", "regions"}
_REFUSALS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a file is in the way",
    errno.EEXIST: "a file is in the way",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOENT: "it cannot be made there, or was removed on the way",
}


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `count`, from 0, of the run that the sixteen hex digits `run` stand for: its inputs in their
    order, what is asked and the settings."""

    number: int
    count: int
    run: str

    @property
    def file_name(self) -> str:
        """Its list in the output folder."""
        return f"manifest-{self.number}-of-{self.count}-{self.run}.jsonl"


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turns a disk that cannot take the output into one clear error.

    Raises: SegueError, for a full, read-only or forbidden place.
    """
    try:
        yield
    except (OSError, MediaError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not is_disk_error(cause) and not _is_refused(error, out):
            raise
        reason = (DISK_ERRORS | _REFUSALS)[getattr(cause, "errno", 0)]
        raise SegueError(
            f"cannot write to {out}: {reason}; "
            "what was finished is kept: make room or give another -o, and run the same command again"
        ) from error


def is_disk_error(cause: BaseException | None) -> bool:
    """Whether an error's cause is a disk that takes no more, and so no fault of the input at work."""
    return isinstance(cause, OSError) and cause.errno in DISK_ERRORS


def _is_refused(error: Exception, out: Path) -> bool:
    """Whether a place in, or on the way to, the output folder cannot be had."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS or not error.filename:
        return False
    place = Path(error.filename)
    return place.is_relative_to(out) or out.is_relative_to(place)


def record_of(result: dict[str, Any], folder: str) -> Record:
    """The manifest's line for a finished input, from its `result.json` and the name of its folder."""
    return {
        "source": result["source"]["path"],
        "phrases": list(_asked(result)),
        "status": "ok",
        "folder": folder,
        "error": None,
        "sha256": result["source"]["sha256"],
        "stamp": result["source"]["stamp"],
        "settings": result["fingerprint"],
        "seconds": result["seconds"],
        "regions": [{key: region.get(key) for key in REGION} for region in result["regions"]],
        "not_found": result.get("not_found", []),
        "frames": len(result.get("frames", [])),
        "notes": result["source"].get("notes", []),
    }


def failure(
    source: Source, error: SegueError, *, asked: Sequence[str], folder: Path, settings: str, seconds: float
) -> Record:
    """The manifest's line for an input that gave no result, and why; names the folder if an older result is there."""
    return {
        "source": str(source),
        "phrases": list(asked),
        "status": "failed",
        "folder": folder.name if folder.exists() else None,
        "error": str(error),
        "sha256": None,
        "stamp": None,
        "settings": settings,
        "seconds": seconds,
        "regions": [],
    }


class Manifest:
    """The records of an output folder, by source and question; the latest one counts. Made by `opened`.

    `asked` are the phrases of the run at hand: what was asked otherwise is kept and left alone.
    """

    def __init__(self, out: Path, asked: Sequence[str] = (), file_name: str = NAME):
        self.out = out
        self.asked = tuple(asked)
        self._path = out / file_name
        self.records = _read(out / NAME) | _of_shards(out)

    def add(self, record: Record) -> None:
        """Append a record, so that it is on the disk when this returns; half a line is taken back if it cannot be."""
        append(self._path, _line(record))
        self.records[key_of(record)] = record

    def tidy(self) -> None:
        """Rewrite the file with one line per source and question, in the order in which they first came."""
        lines = b"".join(map(_line, self.records.values()))
        if (self._path.read_bytes() if self._path.exists() else b"") == lines:
            return
        draft = self.out / f"{PART}{NAME}"
        draft.write_bytes(lines)
        draft.replace(self._path)

    def finished(self, source: Source, holds: Callable[[Record], bool]) -> Record | None:
        """The record of a source that has a result in its place for which `holds` is true.

        The folder's own `result.json` is asked too: a run may have been killed between writing and listing it, and it
        may have been damaged since.
        """
        record = self.records.get((str(source), self.asked))
        if record is None or record["folder"] is None:
            return None
        folder = self.out / record["folder"]
        result = read_result(folder)
        if result is None:
            return None
        if record["status"] == "ok" and holds(record):
            return record
        if not holds(found := record_of(result, folder.name)):
            return None
        self.add(found)
        return found

    def assign(self, sources: Sequence[Source]) -> dict[Source, Path]:
        """A result folder for each source, in order: the one it has, else a new one that is nobody's."""
        known = {
            name: record["folder"]
            for (name, asked), record in self.records.items()
            if asked == self.asked and record["folder"]
        }
        foreign = {path.name for path in self.out.iterdir()} - set(known.values())
        names = folder_names(sources, known=known, taken={*foreign, NAME}, asked=self.asked)
        return {source: self.out / name for source, name in names.items()}

    def adopt(self) -> None:
        """Take in what was finished but not yet listed when an earlier run was killed."""
        listed = {record["folder"] for record in self.records.values()}
        for folder in sorted(self.out.iterdir()):
            is_known = folder.name in listed or folder.name.startswith((PART, OLD))
            result = None if is_known else read_result(folder)
            known = self.records.get((result["source"]["path"], _asked(result))) if result else None
            if result and not (known and known["folder"]):
                record = record_of(result, folder.name)
                self.records[key_of(record)] = record

    def missing(self, sources: Sequence[Source], settings: str) -> list[Source]:
        """Sources that have neither a result in its place nor a failure under these settings."""

        def is_there(record: Record | None) -> bool:
            if record is None or record["settings"] != settings:
                return False
            return record["status"] == "failed" or (self.out / record["folder"] / RESULT).is_file()

        return [source for source in sources if not is_there(self.records.get((str(source), self.asked)))]

    def put_in_order(self, sources: Sequence[Source]) -> None:
        """List these sources last, in this order, as one run over them does in a new folder."""
        keys = [(str(source), self.asked) for source in sources]
        self.records |= {key: self.records.pop(key) for key in keys if key in self.records}


@contextmanager
def opened(out: Path, asked: Sequence[str] = ()) -> Iterator[Manifest]:
    """The manifest of an output folder for a run that asks for these phrases, made if missing, mended if
    torn, for this process alone while it is open.

    What an earlier run left half-written is removed.

    Raises: ConfigError, if `out` is a file or another run is writing to it; DataError, if the manifest cannot be read;
    SegueError, if the disk cannot take it.
    """
    _make(out)
    with alone(out):
        recover(out)
        parts = shard_lists(out)
        manifest = Manifest(out, asked)
        manifest.adopt()
        manifest.tidy()
        for part in parts:
            part.unlink()
        yield manifest
        manifest.tidy()


@contextmanager
def opened_shard(out: Path, asked: Sequence[str], shard: Shard) -> Iterator[Manifest]:
    """The manifest of an output folder for one shard of a run: what it adds goes to the shard's own list, and other
    shards may be at work in the folder meanwhile.

    Raises: as `opened`, and as `claimed`.
    """
    _make(out)
    with alone(out, shared=True), claimed(out, shard):
        manifest = Manifest(out, asked, shard.file_name)
        manifest.adopt()
        yield manifest


def shard_lists(out: Path) -> dict[Path, Shard]:
    """The lists that shards have left in an output folder."""
    named = ((path, _SHARD_LIST.fullmatch(path.name)) for path in sorted(out.glob("manifest-*.jsonl")))
    return {path: Shard(int(found[1]), int(found[2]), found[3]) for path, found in named if found}


@contextmanager
def claimed(out: Path, shard: Shard) -> Iterator[None]:
    """This shard's list is there, mended, and this process's alone; shards of the same number of parts may be at work.

    Raises: ConfigError, if another process does this shard or shards of another number of parts, or if shards of other
    inputs, phrases or settings have been at work and are not merged yet.
    """
    path = out / shard.file_name
    path.touch()
    with alone(path), ExitStack() as others:
        for other, its in shard_lists(out).items():
            if its.run != shard.run:
                if not path.stat().st_size:
                    path.unlink()
                raise ConfigError(
                    f"{other} is of a sharded run over other inputs, or with other phrases or settings; give every "
                    "shard the same, or merge that run first: its command again, without --shard"
                )
            if its.count != shard.count:
                others.enter_context(alone(other, shared=True))
        mend(path)
        yield


def read_result(folder: Path) -> dict[str, Any] | None:
    """The `result.json` of a folder that `segment` wrote; `None` for anything else."""
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_bytes())
        if result["format"] != FORMAT or not result.keys() >= _OF_RESULT:
            return None
        _checked(record_of(result, folder.name))
        return result if isinstance(result["settings"], dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{out} is a file; -o takes a folder to write results into") from error


def _of_shards(out: Path) -> dict[Key, Record]:
    """What the shards at work in a folder have listed: of an input the result, else the failure.

    Raises: DataError, if an input has two results, or two inputs have one.
    """
    records: dict[Key, Record] = {}
    owners: dict[str, Key] = {}
    for path in shard_lists(out):
        for key, record in _read(path).items():
            old = records.get(key)
            if record["status"] != "ok":
                records.setdefault(key, record)
                continue
            if old is not None and old["status"] == "ok" and old["folder"] != record["folder"]:
                raise DataError(
                    f"{key[0]} was done twice, in {out / old['folder']} and {out / record['folder']}; delete one "
                    f"of the folders, and its line in {path} or beside it"
                )
            if (owner := owners.setdefault(record["folder"], key)) != key:
                raise DataError(
                    f"{owner[0]} and {key[0]} both claim {out / record['folder']}; delete it and both "
                    f"lines, in {path} and beside it, and run the same command again"
                )
            if old is not None and old["status"] == "ok" and old != record:  # its source changed, and it was done again
                result = read_result(out / record["folder"])
                record = record_of(result, record["folder"]) if result else record
            records[key] = record
    return records


def _line(record: Record) -> bytes:
    return encode_json(json.dumps(record, ensure_ascii=False) + "\n")


def key_of(record: Record) -> Key:
    """What a record is about."""
    return record["source"], tuple(record.get("phrases", ()))


def _asked(result: dict[str, Any]) -> tuple[str, ...]:
    return tuple(result.get("settings", {}).get("phrases", ()))


def _read(path: Path) -> dict[Key, Record]:
    """The whole lines of a manifest, by source and question; a last line without its end was torn and is left out."""
    records: dict[Key, Record] = {}
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        return records
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = _checked(json.loads(line))
            records[key_of(record)] = record
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f"line {number} of {path} is not a record of a finished input; "
                "delete the line or the whole file, finished results are found again by themselves"
            ) from error
    return records


def _checked(record: Record) -> Record:
    """A line as far as it decides what is read and written: its fields are there, its folder lies in the output folder.

    Raises: ValueError, KeyError, TypeError, for any other.
    """
    folder = record["folder"]
    is_inside = folder is None or (Path(folder).name == folder and folder not in ("", ".."))
    is_known = record["status"] == "failed" or (record["status"] == "ok" and folder is not None)
    is_whole = isinstance(record["source"], str) and record.keys() >= {"settings", "sha256", "stamp"}
    is_asked = all(isinstance(phrase, str) for phrase in record.get("phrases", ()))
    if not (is_inside and is_known and is_whole and is_asked):
        raise ValueError("none of ours")
    return record
