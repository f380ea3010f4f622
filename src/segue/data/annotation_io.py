"""Annotation files and the media they speak of: read, and checked against each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from segue.errors import ConfigError, DataError, MediaError
from segue.media import open_media
from segue.pickled import read_pickled
from segue.reading import read_text
from segue.types import Media

Known = TypeVar("Known")

_PICKLED = (".p", ".pkl", ".pickle")


class MissingFileError(MediaError):
    """A file that is named is not there."""


def require(root: Path, paths: Iterable[str], layout: str) -> None:
    """Check that everything a dataset needs lies below its root; `layout` shows people what should.

    Raises: DataError, naming all that is missing.
    """
    missing = [path for path in paths if not (root / path).exists()]
    if missing:
        raise DataError(f"below {root} there is no {', no '.join(missing)}; expected {' '.join(layout.split())}")


def first_of(root: Path, paths: Sequence[str]) -> str:
    """The first of some paths that exists; the first of all if none does, so that its absence is what is told."""
    return next((path for path in paths if (root / path).exists()), paths[0])


def select(table: Mapping[str, Known], name: str, what: str) -> Known:
    """An entry of a table by its name, `what` saying what the names are.

    Raises: ConfigError, listing the known names.
    """
    if name not in table:
        raise ConfigError(f"unknown {what} {name!r}; known are {', '.join(table)}")
    return table[name]


def require_train(split: str, dataset: str) -> None:
    """Check the split of a dataset that has only one.

    Raises: ConfigError, if it is not train.
    """
    select({"train": None}, split, f"split of {dataset}")


def lookup(table: Mapping[Any, Known], key: Any, what: str) -> Known:
    """An entry that one annotation names and another must have; `what` says what is looked for and where.

    Raises: DataError.
    """
    if key not in table:
        raise DataError(f"{what} {key!r} is named, but it is not there; the files do not belong together")
    return table[key]


def read_annotations(path: Path) -> Any:
    """What an annotation file holds, JSON or, by its suffix, pickled plain data (`segue.pickled`).

    Raises: DataError, if it cannot be read or is neither.
    """
    try:
        if path.suffix.lower() in _PICKLED:
            return read_pickled(path)
        if text := _text(path).strip():
            return json.loads(text)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        cure = "copy or export it again"
        if str(error).startswith("Extra data: line 2"):
            cure = "it has a JSON value a line where one is expected: put them into a list, [..., ...]"
        raise DataError(f"{path} is not valid JSON: {error}; {cure}") from error
    raise DataError(f"{path} is empty; copy or export it again")


def read_list(path: Path) -> list[Any]:
    """The records of an annotation file that is a list.

    Raises: DataError, as `read_annotations` does, and if it is something else.
    """
    content = read_annotations(path)
    if not isinstance(content, list):
        raise DataError(f"{path} holds {_short(content)}; expected a list of records")
    return content


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def field(record: Any, name: str, kind: type | UnionType, where: str) -> Any:
    """The value of a record's field, which must be there and of that type.

    Raises: DataError.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is {_short(record)}; expected a record with the field {name!r}")
    if name not in record:
        raise DataError(f"{where} has no field {name!r}; it has {', '.join(map(str, record)) or 'none'}")
    if not isinstance(record[name], kind):
        expected = getattr(kind, "__name__", str(kind))
        raise DataError(f"{where} has {name} = {_short(record[name])}; expected {expected}")
    return record[name]


def table_field(table: Mapping[str, Known], record: Any, name: str, where: str) -> Known:
    """The entry of a table that a record's field names.

    Raises: DataError.
    """
    value = field(record, name, str, where)
    if value not in table:
        raise DataError(f"{where} has {name} = {_short(value)}; expected one of {', '.join(table)}")
    return table[value]


@contextmanager
def checked_format(where: str) -> Iterator[None]:
    """Takes what goes wrong with parts of another type or number than a format says for an error of the annotations.

    Put it around code that does nothing but take annotations apart.

    Raises: DataError, saying where.
    """
    try:
        yield
    except (TypeError, AttributeError, KeyError, IndexError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(
            f"{where} does not have the form it must have ({type(error).__name__}: {error}); export or copy it again"
        ) from error


def open_sized(path: Path, stated: tuple[int, int] | None = None) -> Media:
    """The medium at a path; `stated` is the (height, width) that its annotation was made for, if that says one.

    Raises: MediaError and LimitError, as opening does; DataError, if the medium is of another size than stated.
    """
    media = open_media(path)
    if stated is not None and media.size != stated:
        raise DataError(
            f"{path.name} is {media.size[1]}x{media.size[0]} pixels, but was annotated at {stated[1]}x{stated[0]}; "
            "give the annotated image or annotations of this size"
        )
    return media


def find_file(folders: Sequence[Path], *names: str) -> Path:
    """The file of the first of these names that is in any of the folders, which are asked in order.

    Raises: MediaError, if a name is empty or leads out of the folders, or listing them if there is no such file.
    """
    for name in names:
        if not Path(name).parts:
            raise MissingFileError(f"the file's name is {name!r}; expected a path relative to the data's folders")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise MediaError(f"the file {name!r} lies outside the data's folders; name it relative to them")
        for folder in folders:
            try:
                if (path := folder / name).exists():
                    return path
            except OSError as error:
                raise MissingFileError(f"the file {name[:60]!r} cannot be looked for: {error.strerror}") from error
    raise MissingFileError(f"there is no {' or '.join(names)} in {', '.join(map(str, folders))}")


def by_id(records: Sequence[Any], what: str) -> dict[int | str, Mapping[str, Any]]:
    """Records by their field `id`; `what` says what they are.

    Raises: DataError, if one has none, or two that differ have the same.
    """
    found: dict[int | str, Mapping[str, Any]] = {}
    for number, record in enumerate(records):
        name = field(record, "id", int | str, f"{what} {number}")
        if found.setdefault(name, record) != record:
            raise DataError(f"{what} {number} has id {name!r}, which another has too; give each an id of its own")
    return found


def stated_size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) where a record states both as numbers above 0, else None."""
    return size_of(record.get("height"), record.get("width"))


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """Both, if they are whole numbers above 0, 40.0 among them, else None."""
    sides = [int(side) for side in (height, width) if isinstance(side, int | float) and side > 0 and side % 1 == 0]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
