"""Files of rows: a JSON record a line, and tables with a header whose columns are one tab apart."""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

from segue.errors import DataError
from segue.media import open_media
from segue.types import Media

_LIMIT = threading.Lock()


def read_lines(path: Path) -> list[Any]:
    """The JSON values of a file that has one a line; empty lines are left out.

    Raises: DataError, naming the line that is none.
    """
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}; copy or export it again") from error
    return rows


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table by the names in its header, all as text; a quoted cell may hold tabs and line breaks. Empty
    lines are left out.

    Raises: DataError, if it cannot be read or a row has more or fewer cells than the header.
    """
    text = _text(path)
    # images lie in cells, and the reader's limit belongs to the whole process
    with _LIMIT:
        before = csv.field_size_limit(sys.maxsize)
        try:
            header, *rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t")) or [[]]
        except csv.Error as error:
            raise DataError(f"{path} is not a table of cells one tab apart: {error}; copy it again") from error
        finally:
            csv.field_size_limit(before)
    for number, row in enumerate(rows, start=2):
        if len(row) not in (0, len(header)):
            raise DataError(f"{path}, row {number} has {len(row)} cells where the header has {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows if row]


def listed(cell: str, where: str) -> list[Any]:
    """The list that a cell holds, as JSON or as Python writes it.

    Raises: DataError, if it holds none.
    """
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(cell)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    raise DataError(f"{where} is {cell[:60]!r}; expected a list such as ['a', 'b']")


def embedded_image(cell: str, where: str) -> Media:
    """The image that a cell holds as base64.

    Raises: DataError, if it is no base64; MediaError and LimitError, as opening does.
    """
    try:
        content = base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} holds no image as base64: {error}; copy the file again") from error
    return open_media(content)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}; copy or export it again") from error
