"""The report as one page that needs nothing beside it: figures, curves, and the best and worst rows to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Bool

from segue.data.base import Dataset, rng_for
from segue.errors import DataError, SegueError
from segue.evals.base import medium_of
from segue.evals.run import answer_store, report, rows
from segue.files import atomic_path
from segue.media import read_frames
from segue.output import pages
from segue.types import Answer, Region, Sample

PAGE = "report.html"
SHOWN = 6
"""How many of the best and of the worst rows are shown, one of a group."""
_POINTS = 200
_LONGEST = 300  # characters of an answer

Ranked = list[tuple[float, rows.Line]]


def write(run: report.RunFolder, made: report.RunReport, dataset: Dataset) -> None:
    """Write the page of a report beside it; rows whose medium cannot be read any more are shown in words.

    Raises: MediaError, if it cannot be written.
    """
    order = ranked(run)
    worst = _of_each_group(order)
    best = _of_each_group([one for one in reversed(order) if one not in worst])
    charts = [_thresholds(made["figures"]), _sorted(made["headline"], [value for value, _ in order])]
    lines = report.figure_lines(made)
    intervals = {name: f"{value} ({low_high})" if low_high else value for name, value, low_high in lines}
    parts = [
        "<h2>Figures, with their 95% intervals</h2>",
        pages.table(intervals),
        f"<h2>Published {escape(made['headline'])}</h2>" if made["published"] else "",
        pages.table({name: report.number(value) for name, value in made["published"].items()}),
        "<h2>How they came about</h2>",
        pages.table(report.told(made)),
        f'<div class="charts">{"".join(charts)}</div>',
        _cases("Worst rows", run, worst, dataset),
        _cases("Best rows", run, best, dataset),
        "<h2>Failed rows</h2>" if made["failures"] else "",
        pages.table({one["id"]: one["error"] for one in made["failures"]}),
    ]
    title = f"{made['benchmark']}: {made['model'].get('model', '?')}"
    with atomic_path(run.out / PAGE) as path:
        path.write_text(pages.page(title, title, parts), encoding="utf-8", errors="backslashreplace")


def ranked(run: report.RunFolder) -> Ranked:
    """Rows by the headline that each has on its own, worst first; those that have none alone are left out."""
    found: Ranked = []
    for line in run.lines.values():
        if line["status"] != "ok":
            continue
        try:
            value = run.benchmark.reduce([line["row"]]).get(run.benchmark.headline)
        except DataError:
            continue
        if value is not None and np.isfinite(value):
            found.append((float(value), line))
    return sorted(found, key=lambda one: (one[0], one[1]["index"]))


def _of_each_group(order: Ranked) -> Ranked:
    """The first row of each group, `SHOWN` at most."""
    firsts: dict[str, tuple[float, rows.Line]] = {}
    for one in order:
        firsts.setdefault(one[1]["row"]["group"], one)
    return list(firsts.values())[:SHOWN]


def _thresholds(figures: Mapping[str, float | None]) -> str:
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, value in figures.items():
        if value is not None and (named := report.AT.fullmatch(name)):
            curves.setdefault(named[1], []).append((float(named[2]), value))
    return pages.chart("threshold", {name: one for name, one in curves.items() if len(one) > 1}, axis="threshold")


def _sorted(headline: str, values: Sequence[float]) -> str:
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).round().astype(int))
    points = [(100 * place / max(len(values) - 1, 1), values[place]) for place in places.tolist()] if values else []
    return pages.chart(f"{headline} of single rows, worst first", {headline: points}, axis="% of rows:")


def _cases(title: str, run: report.RunFolder, chosen: Ranked, dataset: Dataset) -> str:
    if not chosen:
        return ""
    answers = _answers(run, {line["index"] for _, line in chosen})
    shown = []
    for value, line in chosen:
        index = line["index"]
        words = f"{run.named(line)}: {report.number(value)}"
        try:
            sample = dataset.get(index, rng_for(0, 0, index))
            source = _picture(sample, answers[index])
        except SegueError:
            shown.append(("", f"{words}. Its data cannot be read any more."))
            continue
        said = f"Asked: {_cut(sample.messages[-2].text)} Said: {_cut(answers[index].text)}"
        wanted = _cut(sample.messages[-1].text)
        shown.append((source, f"{words}. {said}" + (f" Wanted: {wanted}" if wanted else "")))
    return (
        f"<h2>{title}</h2><p>Of pictures with two halves the left has what is marked, the right what was found.</p>"
        + pages.gallery(shown)
    )


def _answers(run: report.RunFolder, wanted: set[int]) -> dict[int, Answer]:
    """The stored answers of some rows."""

    def keep(line: rows.Line) -> rows.Line:
        return line if line["index"] in wanted else {name: line[name] for name in ("index", "id", "status")}

    lines = rows.gathered(run.out, keep)
    return {index: answer_store.from_json(lines[index]["answer"]) for index in wanted}


def _picture(sample: Sample, answer: Answer) -> str:
    """A frame of the medium with what is marked and what was found, or bare, if there are no masks; empty for none."""
    media = medium_of(sample)
    if media is None:
        return ""
    frames = sample.frames or (0,)
    frame = max(frames, key=lambda number: sum(int(mask.sum()) for mask in _masks(sample.regions, number)))
    pixels = read_frames(media, (frame,)).pixels[0]
    truth, found = _masks(sample.regions, frame), _masks(answer.regions, frame)
    if not truth and not found:
        return pages.picture([pages.marked(pixels, [])])
    return pages.picture([pages.marked(pixels, masks) for masks in (truth, found)])


def _masks(regions: Sequence[Region], frame: int) -> list[Bool[np.ndarray, "h w"]]:
    tracks = [region.masks for region in regions if region.masks is not None]
    return [track.dense(track.index.tolist().index(frame)) for track in tracks if frame in track.index]


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."
