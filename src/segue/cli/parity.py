"""`segue parity`: replay recordings of the original code and say, seam by seam, how near ours comes."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from segue.cli import options
from segue.cli.console import VisibleConsole, say
from segue.errors import ConfigError

if TYPE_CHECKING:
    from segue.parity import Check, Report, Seam

_STYLES = {"pass": "green", "fail": "bold red", "skipped": "dim", "unknown": "yellow"}
SHOWN_FAILURES = 20


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders with recordings.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only this seam, such as llm, sam2.video or e2e; can be repeated."),
    ] = None,
    dtype: options.Dtype = "fp32",
    device: options.Device = "cpu",
    as_json: options.Json = False,
) -> None:
    """Replay a recording of the original code and compare every seam.

    A recording is a folder with a model, inputs and the outputs of the original code. Differences are relative to the
    largest recorded value; recordings are float32, so only --dtype fp32 can pass. The exit code is 1 if a seam fails.
    """
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ConfigError(f"there is no folder {', '.join(missing)}; give recordings, such as those in tests/golden")
    # recordings are replayed on several threads: those that wait should give way to others, not spin
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from segue import parity

    recordings = [parity.Recording.read(folder) for folder in folders]
    wanted = [parity.wanted_seams(recording, only or ()) for recording in recordings]
    reports = []
    for recording, seams in zip(recordings, wanted, strict=True):
        model = parity.load(recording, dtype=dtype, device=device)
        reports.append(parity.replay(recording, model, seams, say))
        if not as_json:
            _print(reports[-1])
    passed = all(report.passed for report in reports)
    if as_json:
        print(json.dumps({"passed": passed, "recordings": [_plain(report) for report in reports]}))
    raise typer.Exit(0 if passed else 1)


def _print(report: Report) -> None:
    console = VisibleConsole()
    table = Table(title=report.recording, title_justify="left", title_style="bold")
    table.add_column("seam")
    for name in ("compared", "max difference", "relative", "cosine", "mask IoU"):
        table.add_column(name, justify="right")
    table.add_column("ids")
    table.add_column("result")
    for seam in report.seams:
        table.add_row(*_cells(seam))
    console.show(table)
    for line in _remarks(report):
        console.print(line, soft_wrap=True)


def _cells(seam: Seam) -> list[Text | str]:
    whole, count, left = seam.summary(), seam.count("pass", "fail"), seam.count("skipped", "unknown")
    same = "" if whole.identical is None else "identical" if whole.identical else "differ"
    return [
        Text(seam.name),
        str(count),
        _number(whole.difference, ".1e"),
        _number(whole.relative, ".1e"),
        _number(whole.cosine, ".7f"),
        _number(whole.iou, ".6f"),
        same,
        Text(whole.verdict + (f", {left} not compared" if left and count else ""), style=_STYLES[whole.verdict]),
    ]


def _number(value: float | None, form: str) -> str:
    # a cosine or an IoU a hair under 1 must not be rounded up to it
    if value is not None and form.endswith("f") and value < 1 <= round(value, int(form[1])):
        return f"1 - {1 - value:.0e}"
    return "" if value is None else format(value, form)


def _remarks(report: Report) -> list[Text]:
    """What failed, what else is worth saying, and what was not compared and why."""
    checks = [check for seam in report.seams for check in seam.checks]
    failures = [check for check in checks if check.verdict == "fail"]
    lines = [Text(f"{check.name}: {_why(check)}", style="red") for check in failures[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        lines.append(Text(f"and {len(failures) - SHOWN_FAILURES} more; --json lists all", style="red"))
    lines += [
        Text(f"{check.name}: {check.note}", style="dim") for check in checks if check.verdict == "pass" and check.note
    ]
    lines += [Text(note, style="dim") for note in report.notes]
    reasons = Counter(check.note for check in checks if check.verdict == "skipped")
    lines += [
        Text(f"{count} recorded tensors not compared: {reason}", style="dim") for reason, count in reasons.items()
    ]
    unknown = [check.name for check in checks if check.verdict == "unknown"]
    if unknown:
        lines.append(Text(f"unknown, not compared: {', '.join(unknown)}", style="yellow"))
    return lines


def _why(check: Check) -> str:
    return check.note or f"differs by {check.difference:.2e}, {check.relative:.1e} of the largest value"


def _plain(report: Report) -> dict[str, Any]:
    """The report as JSON."""
    seams = [_row(seam.summary()) | {"checks": [_row(check) for check in seam.checks]} for seam in report.seams]
    return {"recording": report.recording, "passed": report.passed, "seams": seams, "notes": list(report.notes)}


def _row(check: Check) -> dict[str, Any]:
    """What a check has to say; what JSON has no number for becomes text."""
    row = {name: value for name, value in asdict(check).items() if value not in (None, "")}
    return {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
