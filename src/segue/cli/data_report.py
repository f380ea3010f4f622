"""The data's side of `segue doctor`: a folder of images and masks looked at, told in a table, drawn, and repaired."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from segue.cli.console import Bar, VisibleConsole, say, visible
from segue.errors import ConfigError
from segue.reading import at_home

if TYPE_CHECKING:
    from segue.own_data.doctor import Examined, Report
    from segue.own_data.doctor.repair import Repaired

CLEAN, FAULTY = 0, 2
OUTPUT = Path("segue-out/doctor")
"""Where findings and pictures go, in a folder of the data's name, if nothing else is said."""

_STYLES = {"error": "bold red", "warning": "yellow"}
_SHOWN = 3


class NotDataError(ConfigError):
    """A folder holds no images and masks in a form that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says beside the folder; `phrase` and `group` are as in `segue.own_data.folder.load`."""

    output: Path | None = None
    fix: Path | None = None
    overwrite: bool = False
    phrase: str | None = None
    group: str | None = None
    examples: int = 5
    as_json: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing is said that only one's own images and masks can be asked."""
        return self.fix is None and self.phrase is None and self.group is None


def report(data: Path, settings: Settings) -> int:
    """Look at a folder of data, print what is found, draw it, perhaps write a corrected copy; returns the exit code.

    Raises: NotDataError, if the folder is no data; SegueError, if something cannot be read at all or written.
    """
    from segue.own_data.doctor import overlays, repair

    out = settings.output or OUTPUT / data.resolve().name
    _check_apart(data, settings.fix)
    examined = _examined(data, settings)
    with Bar(f"writing into {out}") as bar:
        written = overlays.write(examined, out, examples=settings.examples, progress=bar)
    repaired = None
    if settings.fix is not None:
        with Bar(f"copying into {settings.fix}") as bar:
            target = at_home(settings.fix).absolute()
            repaired = repair.write(examined, target, overwrite=settings.overwrite, progress=bar)
    is_good = examined.report.is_clean or repaired is not None
    if settings.as_json:
        print(json.dumps(_plain(data, examined.report, out, settings.fix, repaired)))
    else:
        say(f"{data} is read as {examined.survey.form}")
        _print(data, examined.report, settings)
        _tell(out, len(written) - 1, settings.fix, repaired)
    return CLEAN if is_good else FAULTY


def _check_apart(data: Path, fix: Path | None) -> None:
    if fix is None:
        return
    here, there = data.resolve(), at_home(fix).resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError(f"--fix {fix} lies in {data} or around it, which is never touched; give a folder beside it")


def _examined(data: Path, settings: Settings) -> Examined:
    from segue.own_data.doctor import examine
    from segue.own_data.recognition import NotRecognisedError

    try:
        with Bar(f"looking at {data}", failures_told=0) as bar:
            return examine(data, phrase=settings.phrase, group=settings.group, progress=bar)
    except NotRecognisedError as error:
        raise NotDataError(
            f"{data} is neither a model folder (it has no config.json of a model), nor laid out for a benchmark (see "
            f"docs/layouts.md), nor data: {error}"
        ) from error


def _print(data: Path, found: Report, settings: Settings) -> None:
    from segue.own_data.doctor import KINDS

    console = VisibleConsole()
    parts = [f"{count} {split or 'in no split'}" for split, count in found.splits.items()]
    about = f"{_many(found.rows, 'row')} ({', '.join(parts) or 'none'}), {_many(found.objects, 'object')}"
    console.print(Text(f"{data}: {about}", "bold"), soft_wrap=True)
    if found.findings:
        console.show(_table(found))
    for kind, several in found.by_kind().items():
        first = several[0]
        heading = f"{first.severity}, {KINDS[kind].title}: {first.advice}"
        console.print(Text(heading, _STYLES[first.severity]), soft_wrap=True)
        for finding in several[: min(_SHOWN, max(settings.examples, 1))]:
            place = finding.file if finding.row is None else f"row {finding.row}, {finding.file}"
            place += f", object {finding.object} {finding.text!r}" if finding.object is not None else ""
            is_told = not finding.expected or "expected" in finding.value
            expected = "" if is_told else f"; expected {finding.expected}"
            console.print(Text(f"  {place}{': ' if place else ''}{finding.value}{expected}"), soft_wrap=True)
    errors = sum(finding.severity == "error" for finding in found.findings)
    warnings = len(found.findings) - errors
    told = _many(warnings, "warning")
    verdict = f"{_many(errors, 'error')}, {told}." if errors else f"No errors, {told}: it loads as it is."
    console.print(Text(f"\n{verdict}", "bold red" if errors else "bold green"))


def _table(found: Report) -> Table:
    from segue.own_data.doctor import KINDS

    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title, side in (("severity", "left"), ("count", "right"), ("what", "left"), ("first in", "left")):
        table.add_column(title, justify="right" if side == "right" else "left")
    for kind, several in found.by_kind().items():
        first = several[0]
        severity = Text(first.severity, _STYLES[first.severity])
        table.add_row(severity, str(len(several)), Text(KINDS[kind].title), Text(first.file))
    return table


def _tell(out: Path, pictures: int, fix: Path | None, repaired: Repaired | None) -> None:
    print(visible(f"findings: {out / 'findings.jsonl'}   {_many(pictures, 'picture')}: {out / 'pictures'}"))
    if repaired is None:
        return
    print(
        visible(
            f"corrected copy: {fix}, {_many(repaired.report.rows, 'row')}, {repaired.dropped} left out; it has no error"
        )
    )
    print(visible(f"what was done: {(fix or out) / 'repairs.jsonl'}, {_many(len(repaired.notes), 'line')}"))
    for note in repaired.notes:
        if note.done.startswith("left as it is"):
            say(f"Look at the pictures of the copy: {note.done}.")
    if left := len(repaired.report.findings):
        say(f"The copy has {_many(left, 'warning')}; see them with `segue doctor {fix}`.")


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _plain(data: Path, found: Report, out: Path, fix: Path | None, repaired: Repaired | None) -> dict:
    whole = {
        "data": str(data),
        "usable": found.is_clean,
        "rows": found.rows,
        "objects": found.objects,
        "splits": dict(found.splits),
        "counts": {kind: len(several) for kind, several in found.by_kind().items()},
        "findings": [finding.plain() for finding in found.findings],
        "output": str(out),
    }
    if repaired is not None:
        whole["fixed"] = {"output": str(fix), "rows": repaired.report.rows, "dropped": repaired.dropped}
    return whole
