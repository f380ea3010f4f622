"""What a run found, as JSON, as Markdown and as a page: figures with their confidence, and how they came about.

Everything follows from the rows alone, so the same rows give the same files, byte for byte; what differs from run to run
(seconds, the machine) is in `timings.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segue.errors import DataError
from segue.evals import rows
from segue.evals.base import Benchmark, Row
from segue.evals.confidence import grouped, intervals
from segue.evals.runner import read_run
from segue.media.files import atomic_path

REPORT, MARKDOWN, TIMINGS = "report.json", "report.md", "timings.json"
_MACHINE = ("device", "python", "files")

Report = dict[str, Any]


def gather(out: Path, benchmark: Benchmark, total: int) -> Report:
    """The report of all rows in a folder; `total` is how many were asked for, failed and missing ones included.

    Raises: DataError, if no row was answered, or rows are damaged; ConfigError, if the folder holds no run.
    """
    run, found = read_run(out), rows.gathered(out, _kept)
    found = {index: line for index, line in found.items() if index < total}
    answered = [line for line in found.values() if line["status"] == "ok"]
    failures = [line for line in found.values() if line["status"] == "failed"]
    if not answered:
        raise DataError(f"{out} has no row that was answered, {len(failures)} failed; there is nothing to report")
    kept = [line["row"] for line in answered]
    figures = benchmark.reduce(kept)
    if benchmark.headline not in figures:
        raise DataError(f"{benchmark.name} has no figure {benchmark.headline!r}; it has {', '.join(figures)}")
    return {
        "benchmark": benchmark.name,
        "protocol": run["protocol"],
        "headline": benchmark.headline,
        "figures": {name: _finite(value) for name, value in figures.items()},
        "intervals": {
            name: [one.low, one.high, one.resamples] for name, one in intervals(kept, benchmark.reduce).items()
        },
        "n": len(answered),
        "groups": len(grouped(kept)),
        "failed": len(failures),
        "missing": total - len(found),
        "rows": run["rows"],
        "row_set": row_set(kept),
        "failures": [{name: line[name] for name in ("id", "kind", "error")} for line in failures],
        "dataset": run["dataset"],
        "split": run["split"],
        "options": run["options"],
        "settings": run["settings"],
        "asked": _asked(answered),
        "model": {name: value for name, value in run["model"].items() if name not in _MACHINE},
        "published": dict(benchmark.published),
    }


def row_set(kept: Sequence[Row]) -> str:
    """Sixteen hex digits that stand for which rows were scored."""
    return hashlib.sha256("\n".join(sorted(row["id"] for row in kept)).encode()).hexdigest()[:16]


def write(out: Path, report: Report) -> None:
    """Write a report to its folder as JSON and Markdown, and the run's timings.

    Raises: MediaError, if it cannot be written.
    """
    texts = {REPORT: json.dumps(report, indent=2, ensure_ascii=False) + "\n", MARKDOWN: markdown(report)}
    seconds = rows.gathered(out, lambda line: {**_kept(line), "seconds": line.get("seconds", 0.0)})
    spent = [line["seconds"] for line in seconds.values()]
    machine = {name: read_run(out)["model"].get(name) for name in ("device", "python")}
    texts[TIMINGS] = json.dumps({"asking_seconds": round(math.fsum(spent), 3), **machine}, indent=2) + "\n"
    for name, text in texts.items():
        with atomic_path(out / name) as path:
            path.write_text(text, encoding="utf-8")


def read(out: Path) -> Report:
    """The report in a folder.

    Raises: DataError, if there is none, or it cannot be read.
    """
    path = out / REPORT
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; `segue evaluate` writes it when a run ends"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; write it again with --rescore") from error
    return report


def told(report: Report) -> dict[str, str]:
    """How the figures came about, for people."""
    model, asked = report["model"], report["asked"]
    versions = model.get("versions", {})
    counted = f"{report['n']:,} of {report['rows']:,} rows in {report['groups']:,} groups ({report['row_set']})"
    facts = {
        "model": f"{model.get('model', '?')} ({model.get('model_hash', 'no hash')})",
        "precision": model.get("dtype", "?"),
        "code": ", ".join(f"{name} {text}" for name, text in versions.items()) or "?",
        "protocol": report["protocol"],
        "data": f"{report['dataset']}, split {report['split']}",
        "rows": counted,
        "failed": f"{report['failed']:,}, not in any figure" if report["failed"] else "0",
        "frames": ", ".join(asked["frames"]) or "no video",
        "policy": ", ".join(asked["policies"]) or "no video",
        "prompt of the first row": asked["prompt"],
    }
    if report["missing"]:
        facts["not asked yet"] = f"{report['missing']:,} rows"
    return facts


def lines(report: Report) -> list[tuple[str, str, str]]:
    """Every figure with its interval as text, the headline first."""
    names = [report["headline"], *(name for name in report["figures"] if name != report["headline"])]
    found = []
    for name in names:
        interval = report["intervals"].get(name)
        low_high = "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
        found.append((name, number(report["figures"][name]), low_high))
    return found


def number(value: float | None) -> str:
    """A figure in four digits or so."""
    if value is None:
        return "none"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {report['benchmark']}", "", "| figure | value | 95% interval |", "|---|---|---|"]
    parts += [f"| {name} | {value} | {interval} |" for name, value, interval in lines(report)]
    if report["published"]:
        parts += ["", f"| published {report['headline']} | value |", "|---|---|"]
        parts += [f"| {name} | {number(value)} |" for name, value in report["published"].items()]
    parts += ["", "| how | |", "|---|---|"]
    parts += [f"| {name} | {_cell(text)} |" for name, text in told(report).items()]
    if report["failures"]:
        parts += ["", "| failed row | why |", "|---|---|"]
        parts += [f"| {_cell(one['id'])} | {_cell(one['error'])} |" for one in report["failures"]]
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")


def _kept(line: rows.Line) -> rows.Line:
    """A line without its answer, which may be large."""
    return {name: value for name, value in line.items() if name not in ("answer", "seconds")}


def _asked(answered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The frame policies that were met, and the first prompt."""
    asked = [line["asked"] for line in answered]
    prompts = asked[0]["prompts"]
    return {
        "policies": sorted({one["policy"] for one in asked if one["policy"]}),
        "frames": sorted({one["frames"] for one in asked if one["frames"]}),
        "prompt": prompts[0] if prompts else "?",
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
