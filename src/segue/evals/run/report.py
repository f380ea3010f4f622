"""What a run found, as JSON, as Markdown and as a table of rows: figures, their confidence, how they came about.

Everything follows from the rows alone, so the same rows give the same files, byte for byte; what differs from run to
run (seconds, the machine) is in `timings.json`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.errors import DataError
from segue.evals.base import Benchmark, Row
from segue.evals.metrics.confidence import grouped, intervals
from segue.evals.metrics.own_masks import best_threshold
from segue.evals.run import rows
from segue.evals.run.evaluation import read_run
from segue.files import atomic_path

if TYPE_CHECKING:
    from segue.features import Usage

REPORT, MARKDOWN, TABLE, TIMINGS = "report.json", "report.md", "rows.csv", "timings.json"
SUBMISSION = "submission"
AT = re.compile(r"(.+)@(0?\.\d+)")
"""A figure at a threshold, as `dice@0.3`."""
_MARKS = re.compile(r"([\\`*_\[\]<>|~&#!])")
_MACHINE = ("device", "python", "files")

RunReport = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder of rows, which are read once, and how it is to be reported.

    `total` is how many rows were asked for, failed and missing ones included. Rows of a private benchmark are told by
    their number and their groups by a hash, unless `show_names`.
    """

    out: Path
    benchmark: Benchmark
    total: int
    show_names: bool = False

    @cached_property
    def lines(self) -> dict[int, rows.Line]:
        """What counts, without answers, by the number of the row."""
        found = rows.gathered(self.out, lambda line: {name: line[name] for name in line if name != "answer"})
        return {index: line for index, line in found.items() if index < self.total}

    def scored(self) -> list[Row]:
        """The rows that have a score, in the order of the data.

        Raises: DataError, if there is none.
        """
        scored = [line["row"] for line in self.lines.values() if line["status"] == "ok"]
        if not scored:
            raise DataError(f"{self.out} has no row that was answered; there is nothing to report")
        return scored

    def named(self, line: rows.Line) -> str:
        """What a row is called where others may read it."""
        return str(line["id"]) if self.show_names or not self.benchmark.is_private else f"row {line['index']}"


def gather(run: RunFolder) -> RunReport:
    """The report of all rows in a folder.

    Raises: DataError, if no row was answered, none counts for a figure, or rows are damaged; ConfigError, if the folder
        holds no run.
    """
    record, scored, lines = read_run(run.out), run.scored(), list(run.lines.values())
    benchmark = run.benchmark
    figures = benchmark.reduce(scored)
    if not figures:
        raise DataError(
            f"none of the {len(scored)} rows in {run.out} counts for a figure of {benchmark.name}: their annotations "
            "do not say of which kind they are"
        )
    headline = benchmark.headline if benchmark.headline in figures else next(iter(figures))
    failures = [line for line in lines if line["status"] == "failed"]
    return {
        "benchmark": benchmark.name,
        "protocol": record["protocol"],
        "judged": record.get("judged"),
        "headline": headline,
        "figures": {name: float(value) if math.isfinite(value) else None for name, value in figures.items()},
        "intervals": {
            name: [one.low, one.high, one.resamples] for name, one in intervals(scored, benchmark.reduce).items()
        },
        "n": len(scored),
        "groups": len(grouped(scored)),
        "failed": len(failures),
        "missing": run.total - len(lines),
        "total": run.total,
        "rows": record["rows"],
        "row_set": row_set(scored),
        "failures": [_failure(run, line) for line in failures],
        "dataset": record["dataset"],
        "split": record["split"],
        "options": record["options"],
        "settings": record["settings"],
        "asked": _asked([line for line in lines if line["status"] == "ok"]),
        "model": {name: value for name, value in record["model"].items() if name not in _MACHINE},
        "published": dict(benchmark.published),
    }


def row_set(scored: Sequence[Row]) -> str:
    """Sixteen hex digits that stand for which rows were scored."""
    return hashlib.sha256("\n".join(sorted(row["id"] for row in scored)).encode(errors="surrogatepass")).hexdigest()[
        :16
    ]


def write(run: RunFolder, report: RunReport, features: Usage | None = None) -> None:
    """Write a report as JSON and Markdown, the rows as a table, timings, and what a server or a judge takes.

    `features` is what a feature cache was used for; it stands with the timings.

    Raises: MediaError, if it cannot be written.
    """
    lines = list(run.lines.values())
    machine = {name: read_run(run.out)["model"].get(name) for name in ("device", "python")}
    seconds = round(math.fsum(line.get("seconds", 0.0) for line in lines), 3)
    used = {} if features is None else {"features": asdict(features)}
    texts = {
        REPORT: json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        MARKDOWN: markdown(report),
        TIMINGS: json.dumps({"asking_seconds": seconds, **machine, **used}, indent=2) + "\n",
    }
    for name, text in texts.items():
        with atomic_path(run.out / name) as path:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
    _write_table(run, [line for line in lines if line["status"] == "ok"])
    if run.benchmark.submit is not None:
        run.benchmark.submit(run.scored(), run.out / SUBMISSION)


def read(out: Path) -> RunReport:
    """The report in a folder.

    Raises: DataError, if there is none, or it cannot be read.
    """
    path = out / REPORT
    try:
        report: RunReport = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; `segue evaluate` writes it when a run ends"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; write it again with --rescore") from error
    return report


def told(report: RunReport) -> dict[str, str]:
    """How the figures came about, for people."""
    model, asked = report["model"], report["asked"]
    versions = model.get("versions", {})
    counted = f"{report['n']:,} of {report['rows']:,} in {report['groups']:,} groups, set {report['row_set']}"
    facts = {
        "model": f"{model.get('model', '?')} ({model.get('model_hash', 'no hash')})",
        "precision": model.get("dtype", "?"),
        "code": ", ".join(f"{name} {text}" for name, text in versions.items()) or "?",
        "protocol": report["protocol"] + (f", judged by {report['judged']}" if report["judged"] else ""),
        "data": f"{report['dataset']}, split {report['split']}",
        "rows": counted,
        "failed": f"{report['failed']:,}, in no figure" if report["failed"] else "0",
        "frames": ", ".join(asked["frames"]) or "no video",
        "policy": ", ".join(asked["policies"]) or "no video",
        "threshold of masks": f"{report['settings']['threshold']}",
        "prompt of the first row": asked["prompt"],
    }
    if not report["intervals"]:
        facts["95% intervals"] = "none: they need rows of several groups"
    if report["missing"]:
        facts["not asked yet"] = f"{report['missing']:,} rows"
    return facts


def figure_lines(report: RunReport) -> list[tuple[str, str, str]]:
    """Every figure with its interval as text, the headline first; those at thresholds are `threshold_lines`."""
    names = [report["headline"], *(name for name in report["figures"] if name != report["headline"])]
    names = [name for name in names if not AT.fullmatch(name)]
    found = []
    for name in names:
        interval = report["intervals"].get(name)
        value, *bounds = _alike([report["figures"][name], *([] if interval is None else interval[:2])])
        found.append((name, value, " to ".join(bounds)))
    return found


def threshold_lines(report: RunReport) -> list[tuple[str, ...]]:
    """Figures at each threshold as text: a line of headings, then a line a threshold, the best by its first figure
    marked; nothing, where there are none.
    """
    scanned: dict[str, dict[str, float | None]] = {}
    for name, value in report["figures"].items():
        if found := AT.fullmatch(name):
            scanned.setdefault(found[2], {})[found[1]] = value
    if not scanned:
        return []
    names = list(next(iter(scanned.values())))
    differ = len({figures[names[0]] for figures in scanned.values()} - {None}) > 1
    best = best_threshold(report["figures"], by=names[0]) if differ else None
    lines = [
        (threshold, *(number(figures.get(name)) for name in names), f"best {names[0]}" * (float(threshold) == best))
        for threshold, figures in scanned.items()
    ]
    return [("threshold", *names, ""), *lines]


def number(value: float | None) -> str:
    """A figure in four digits or so."""
    return _alike([value])[0]


def _alike(values: Sequence[float | None]) -> list[str]:
    """Figures with as many decimals as the largest needs."""
    decimals = 2 if any(value is not None and abs(value) >= 10 for value in values) else 4
    return ["none" if value is None else f"{value:.{decimals}f}" for value in values]


def markdown(report: RunReport) -> str:
    """The report as Markdown."""
    parts = [f"# {report['benchmark']}", "", "| figure | value | 95% interval |", "|---|---|---|"]
    parts += [f"| {_cell(name)} | {value} | {interval} |" for name, value, interval in figure_lines(report)]
    if scanned := [[*map(_cell, line)] for line in threshold_lines(report)]:
        parts += ["", f"| {' | '.join(scanned[0])} |", "|---" * len(scanned[0]) + "|"]
        parts += [f"| {' | '.join(line)} |" for line in scanned[1:]]
    if report["published"]:
        parts += ["", f"| published {report['headline']} | value |", "|---|---|"]
        parts += [f"| {_cell(name)} | {number(value)} |" for name, value in report["published"].items()]
    parts += ["", "| how | |", "|---|---|"]
    parts += [f"| {name} | {_cell(text)} |" for name, text in told(report).items()]
    if report["failures"]:
        parts += ["", "| failed row | why |", "|---|---|"]
        parts += [f"| {_cell(one['id'])} | {_cell(one['error'])} |" for one in report["failures"]]
    return "\n".join(parts) + "\n"


def _write_table(run: RunFolder, answered: Sequence[rows.Line]) -> None:
    """A line for each row that was answered, with all of its score that is one value."""
    plain = [
        {name: value for name, value in line["row"].items() if not isinstance(value, list | dict)} for line in answered
    ]
    names = list(dict.fromkeys(name for row in plain for name in row if name not in ("id", "group")))
    with (
        atomic_path(run.out / TABLE) as path,
        path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "group", *names])
        for line, row in zip(answered, plain, strict=True):
            is_told = run.show_names or not run.benchmark.is_private
            group = (
                row["group"] if is_told else hashlib.sha256(row["group"].encode(errors="surrogatepass")).hexdigest()[:8]
            )
            writer.writerow([run.named(line), group, *(row.get(name) for name in names)])


def _failure(run: RunFolder, line: rows.Line) -> dict[str, str]:
    is_told = run.show_names or not run.benchmark.is_private
    why = line["error"] if is_told else f"{line['kind']}; rows.jsonl says more"
    return {"id": run.named(line), "kind": line["kind"], "error": why}


def _cell(text: str) -> str:
    """Text in a table of Markdown, in which nothing that people wrote means anything."""
    return _MARKS.sub(r"\\\1", text).replace("\r", "\\r").replace("\n", "\\n")


def _asked(answered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The frame policies that were met, and the first prompt."""
    asked = [line["asked"] for line in answered]
    prompts = asked[0]["prompts"]
    return {
        "policies": sorted({one["policy"] for one in asked if one["policy"]}),
        "frames": sorted({one["frames"] for one in asked if one["frames"]}),
        "prompt": prompts[0] if prompts else "?",
    }
