"""What evaluation servers and judges take: rows written as JSON, as lines, as tables."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from segue.evals.base import Row, Submit
from segue.files import atomic_path
from segue.output.results import encode_json

_SPREADSHEET = "http://schemas.openxmlformats.org"
_SHEET_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_SPREADSHEET}/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/xl/workbook.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_SPREADSHEET}/package/2006/relationships"><Relationship Id="rId1" '
    f'Type="{_SPREADSHEET}/officeDocument/2006/relationships/officeDocument" Target="xl/workbook.xml"/>'
    "</Relationships>",
    "xl/workbook.xml": f'<workbook xmlns="{_SPREADSHEET}/spreadsheetml/2006/main" '
    f'xmlns:r="{_SPREADSHEET}/officeDocument/2006/relationships"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_SPREADSHEET}/package/2006/relationships">'
    f'<Relationship Id="rId1" Type="{_SPREADSHEET}/officeDocument/2006/relationships/worksheet" '
    'Target="worksheets/sheet1.xml"/></Relationships>',
}


def as_json(**fields: str) -> Submit:
    """Makes a submission: a JSON list of one record a row, each field of the file named with the row's."""

    def submit(rows: Sequence[Row], path: Path) -> Path:
        target = path.with_name(path.name + ".json")
        records = [{name: row[field] for name, field in fields.items()} for row in rows]
        with atomic_path(target) as temporary:
            temporary.write_bytes(encode_json(json.dumps(records, ensure_ascii=False)))
        return target

    return submit


def as_lines(**fields: str) -> Submit:
    """Makes a submission: a file with one JSON record a line; see `as_json`."""

    def submit(rows: Sequence[Row], path: Path) -> Path:
        target = path.with_name(path.name + ".jsonl")
        lines = [
            json.dumps({name: row[field] for name, field in fields.items()}, ensure_ascii=False) + "\n" for row in rows
        ]
        with atomic_path(target) as temporary:
            temporary.write_bytes(encode_json("".join(lines)))
        return target

    return submit


def as_table(**fields: str) -> Submit:
    """Makes a submission: a table with a header, columns one tab apart; see `as_json`."""

    def submit(rows: Sequence[Row], path: Path) -> Path:
        target = path.with_name(path.name + ".tsv")
        with (
            atomic_path(target) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(fields)
            writer.writerows([row[field] for field in fields.values()] for row in rows)
        return target

    return submit


def write_sheet(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records as the one sheet of an .xlsx file, with a header; the columns are those of the first record.

    Whole and decimal numbers are numbers there, all else is text. Characters that XML cannot hold are left out.

    Raises: MediaError, if it cannot be written.
    """
    columns = list(records[0]) if records else []
    lines: list[Sequence[Any]] = [columns, *([record.get(column) for column in columns] for record in records)]
    rows = "".join(f"<row>{''.join(map(_cell, line))}</row>" for line in lines)
    sheet = f'<worksheet xmlns="{_SPREADSHEET}/spreadsheetml/2006/main"><sheetData>{rows}</sheetData></worksheet>'
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (_SHEET_PARTS | {"xl/worksheets/sheet1.xml": sheet}).items():
            archive.writestr(name, head + content)
    return path


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<c t="n"><v>{value}</v></c>'
    text = "".join(letter for letter in str("" if value is None else value) if letter.isprintable() or letter in "\n\t")
    return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(text)}</t></is></c>'
