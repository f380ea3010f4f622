"""`rows.jsonl`: one line for each question that was answered or failed, on the disk before the next batch is asked.

Lines come in the order in which questions were asked, and several files may stand beside one another, one for each
shard. What counts is their union, by the number of the row: an answer counts once, a failure only where no answer came
later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from segue.errors import DataError
from segue.files import append, atomic_path
from segue.output.results import encode_json

Line = dict[str, Any]

_NAME = re.compile(r"rows(?:-\d+-of-(\d+))?\.jsonl")


def file_name(shard: tuple[int, int]) -> str:
    """The file of shard i of n, from 0; that of a run in one piece is `rows.jsonl`."""
    return "rows.jsonl" if shard == (0, 1) else f"rows-{shard[0]}-of-{shard[1]}.jsonl"


def files(folder: Path) -> list[Path]:
    """Every file of rows in a folder."""
    return sorted(path for path in folder.glob("rows*.jsonl") if _NAME.fullmatch(path.name))


def shards_of(path: Path) -> int:
    """Of how many shards a file of rows is one."""
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return int(named[1] or 1)


def add(path: Path, line: Line) -> None:
    """Append a line, so that it is on the disk when this returns.

    Raises: OSError, if the disk takes no more.
    """
    append(path, encode(line))


def encode(line: Line) -> bytes:
    """A line as it stands in the file.

    Raises: DataError, if it holds a value that JSON cannot hold.
    """
    try:
        return encode_json(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the row of {line['id']} holds a value that JSON cannot hold ({error}); a score gives numbers that are "
            "finite, text, lists and None"
        ) from error


def lines(path: Path) -> Iterator[Line]:
    """The whole lines of a file, in order; a torn last one is left out.

    Raises: DataError, naming the line, for one that is none of ours.
    """
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
                known = line["index"], line["id"], line["status"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number} is damaged ({type(error).__name__}: {error}); take the line out, and its "
                    "question is asked again"
                ) from error
            if known[2] not in ("ok", "failed"):
                raise DataError(f"{path}, line {number} has the status {known[2]!r}; expected ok or failed")
            yield line


def gathered(folder: Path, keep: Callable[[Line], Line] = lambda line: line) -> dict[int, Line]:
    """What counts of all lines in a folder, by the number of the row, ascending; `keep` takes what is wanted of each.

    Raises: DataError, if a row was answered twice, or two rows have one id.
    """
    found: dict[int, Line] = {}
    for path in files(folder):
        for line in lines(path):
            index, old = line["index"], found.get(line["index"])
            if old is not None and line["status"] == "ok" and old["status"] == "ok":
                raise DataError(
                    f"{path} answers row {index} ({line['id']}), which is answered already; a row counts once. Take "
                    "one of the two lines out, or start anew with --overwrite"
                )
            if old is None or line["status"] == "ok":
                found[index] = keep(line)
    ids: dict[str, int] = {}
    for index, line in found.items():
        if line["status"] == "ok" and ids.setdefault(line["id"], index) != index:
            raise DataError(
                f"rows {ids[line['id']]} and {index} have one id, {line['id']}; rows of a data set need their own"
            )
    return dict(sorted(found.items()))


def write(path: Path, found: Iterable[Line]) -> None:
    """Put these lines in the place of a file, whole or not at all.

    Raises: MediaError, if it cannot be written.
    """
    content = b"".join(map(encode, found))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
