"""The benchmarks' side of `segue doctor`: which of them a folder holds, which are ready, and what the others lack."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from segue.cli.console import VisibleConsole, say
from segue.errors import ConfigError, SegueError

if TYPE_CHECKING:
    from segue.evals.benchmarks.layouts import LayoutStatus, LayoutSurvey

READY, LACKING = 0, 2
Rows = dict[str, int | str]
"""By benchmark, its number of rows, or why they cannot be read."""


def survey(data: Path) -> LayoutSurvey:
    """Which benchmarks a folder holds data of, of all there are."""
    from segue.evals.benchmarks import BENCHMARKS, layouts

    return layouts.survey(data, BENCHMARKS.values())


def report_on(data: Path, on: str, *, as_json: bool) -> int:
    """Tell how the benchmarks of these names, separated by commas, stand, whether or not anything of them is there.

    Of those whose files are all there the first row is opened. Returns the exit code.

    Raises: ConfigError, for a name that no benchmark has.
    """
    from segue.evals.benchmarks import BENCHMARKS, layouts

    words = layouts.known_names(BENCHMARKS.values())
    statuses: list[LayoutStatus] = []
    rows: Rows = {}
    for name in map(str.strip, on.split(",")):
        if name not in BENCHMARKS:
            near = get_close_matches(name, BENCHMARKS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"unknown benchmark {name!r}{hint} Known: {', '.join(BENCHMARKS)}")
        statuses.append(layouts.LayoutStatus((name,), tuple(layouts.missing(BENCHMARKS[name], data, words))))
        if statuses[-1].is_ready:
            try:
                rows[name] = layouts.rows(BENCHMARKS[name], data)
            except SegueError as error:
                rows[name] = str(error)
    return report(data, layouts.LayoutSurvey(tuple(statuses), ()), rows, as_json=as_json)


def report(data: Path, found: LayoutSurvey, rows: Rows | None = None, *, as_json: bool) -> int:
    """Tell what was found, and of some benchmarks how many rows they have or why they cannot be read; returns the exit
    code."""
    rows = rows or {}
    is_good = all(status.is_ready for status in found.statuses)
    is_good = is_good and not any(isinstance(value, str) for value in rows.values())
    if as_json:
        print(json.dumps(_plain(data, found, rows, is_good)))
    else:
        _print(found, rows)
        if found.absent:
            others = "1 other benchmark" if len(found.absent) == 1 else f"{len(found.absent)} other benchmarks"
            say(f"Nothing is here of {others}; `--on NAME` tells what one of them needs.")
    return READY if is_good else LACKING


def _print(found: LayoutSurvey, rows: Rows) -> None:
    console = VisibleConsole()
    ready = 0
    for status in found.statuses:
        unread = [rows[name] for name in status.names if isinstance(rows.get(name), str)]
        is_ready = status.is_ready and not unread
        ready += len(status.names) * is_ready
        counted = [f"{rows[name]:,} rows" for name in status.names if isinstance(rows.get(name), int)]
        state = Text("ready" if is_ready else "not ready", "green" if is_ready else "bold red")
        line = Text.assemble(state, "  ", (", ".join(status.names), "bold"), "".join(f", {text}" for text in counted))
        console.print(line, soft_wrap=True)
        for told in [*(finding.text for finding in status.findings), *unread]:
            console.print(Text(f"    {told}"), soft_wrap=True)
    total = sum(len(status.names) for status in found.statuses)
    verdict = "All are ready." if ready == total else f"{ready} of {total} are ready."
    console.print(Text(f"\n{verdict}", "bold green" if ready == total else "bold red"))


def _plain(data: Path, found: LayoutSurvey, rows: Rows, is_good: bool) -> dict:
    return {
        "data": str(data),
        "usable": is_good,
        "benchmarks": [
            one for status in found.statuses for one in (_record(status, name, rows) for name in status.names)
        ],
        "absent": list(found.absent),
    }


def _record(status: LayoutStatus, name: str, rows: Rows) -> dict:
    unread = rows.get(name) if isinstance(rows.get(name), str) else None
    record = {
        "name": name,
        "ready": status.is_ready and unread is None,
        "findings": [
            {"expected": one.expected, "found": one.found, "empty": one.is_empty, "text": one.text}
            for one in status.findings
        ],
    }
    if unread is not None:
        record["error"] = unread
    elif name in rows:
        record["rows"] = rows[name]
    return record
