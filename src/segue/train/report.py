"""`report.html`: how a run went, on one page that needs nothing beside it.

Rows have numbers, never file names; the best and the worst of the held-out ones are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

from segue import config
from segue.grounding import trained
from segue.media.files import atomic_path
from segue.train import pictures
from segue.train.feed import parts_of
from segue.train.journal import LOG, lines
from segue.train.recipe import TrainRecipe

REPORT, CASES = "report.html", "validation.json"
WIDTH, HEIGHT, MARGIN = 640, 220, 52
COLOURS = ("#1490ff", "#d9730d", "#c4127a", "#4b8b00", "#6a00e8", "#8a3d12")
SHOWN = 3
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}"
    "pre{background:#f5f5f5;padding:.8rem;overflow-x:auto;font-size:13px}svg{max-width:100%;height:auto}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(25rem,100%),1fr));gap:0 2rem}"
    ".rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(18rem,100%),1fr));gap:1rem}figure{margin:0}"
    "img{width:100%}figcaption{font-size:13px}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#242424}}"
)
Points = Sequence[tuple[float, float]]


def write(run: Path, recipe: TrainRecipe) -> Path:
    """Write the report of a run that has a checkpoint; returns its path.

    Raises: CheckpointError, MediaError, if it cannot be read or written.
    """
    said = lines(run / LOG)
    steps, judged = ([line for line in said if line["kind"] == kind] for kind in ("step", "judged"))
    best = trained.find(run)
    assert best is not None
    record = trained.read(best)
    facts = {
        "best checkpoint": best.relative_to(run).as_posix(),
        "its step": f"{record.step:,}",
        "base": f"{record.base} ({record.base_hash})",
        "hash": record.content_hash,
        **{name: f"{value:.4f}" for name, value in record.metrics.items()},
        "versions": ", ".join(f"{name} {text}" for name, text in record.versions.items()),
    }
    figures = ("mean_iou", "ciou", "dice", "emitted")
    charts = [
        _chart("loss", {name: _points(steps, name) for name in ("loss", "text")}),
        _chart("loss of masks", {name: _points(steps, name) for name in ("mask", "dice", "align", "iou")}),
        _chart("validation", {name: _points(judged, name) for name in figures}),
        _chart("learning rate", {"rate": _points(steps, "rate")}),
    ]
    parts = [
        _table(facts),
        f'<div class="charts">{"".join(charts)}</div>',
        _cases(run / CASES, recipe),
        "".join(f"<h2>Stage</h2><pre>{escape(line['text'])}</pre>" for line in said if line["kind"] == "stage"),
        f"<h2>Recipe</h2><pre>{escape(config.dump(recipe))}</pre>",
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(run.name)}: training</title>'
        f"<style>{_STYLE}</style><h1>{escape(run.name)}</h1>{''.join(parts)}</html>\n"
    )
    with atomic_path(run / REPORT) as path:
        path.write_text(page, encoding="utf-8")
    return run / REPORT


def _points(said: Sequence[Mapping[str, Any]], name: str) -> Points:
    return [(float(line["step"]), float(line[name])) for line in said if name in line]


def _table(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def _chart(title: str, curves: Mapping[str, Points]) -> str:
    """Curves over steps as one picture; nothing, where there are no points."""
    drawn = {name: points for name, points in curves.items() if points}
    if not drawn:
        return ""
    places = [point for points in drawn.values() for point in points]
    left, right = min(x for x, _ in places), max(x for x, _ in places)
    top, bottom = _ceiling(max(y for _, y in places)), min(0.0, *(y for _, y in places))

    def at(x: float, y: float) -> str:
        across = (x - left) / (right - left or 1) * (WIDTH - MARGIN - 8) + MARGIN
        down = (top - y) / (top - bottom or 1) * (HEIGHT - 40) + 10
        return f"{across:.1f},{down:.1f}"

    lines_drawn, names = [], []
    for colour, (name, points) in zip(cycle(COLOURS), drawn.items(), strict=False):  # colours never end
        path = " ".join(at(*point) for point in points)
        dots = "".join(_dot(at(*point), colour) for point in points) if len(points) < 60 else ""
        lines_drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>{dots}')
        names.append(f'<span style="color:{colour}">&#9632;</span> {escape(name)}')
    ticks = [bottom + share * (top - bottom) for share in (0, 0.25, 0.5, 0.75, 1)]
    axes = "".join(_line(float(at(left, tick).split(",")[1]), f"{tick:.3g}") for tick in ticks)
    axes += (
        f'<text x="{MARGIN}" y="{HEIGHT - 8}">step {left:.0f}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 8}" text-anchor="end">{right:.0f}</text>'
    )
    return (
        f"<section><h2>{escape(title)}</h2><p>{' &nbsp; '.join(names)}</p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(title)} over steps" '
        f'font-size="12" fill="currentColor">{axes}{"".join(lines_drawn)}</svg></section>'
    )


def _ceiling(value: float) -> float:
    """A round number not below a value; 1 for one that is not above 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((digit * power for digit in (1, 2, 4, 6, 8, 10) if digit * power >= value), value)


def _line(y: float, label: str) -> str:
    """A line across the chart at a round number."""
    return (
        f'<text x="0" y="{y + 4:.1f}">{label}</text>'
        f'<line x1="{MARGIN}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="0.15"/>'
    )


def _dot(place: str, colour: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>'


def _cases(path: Path, recipe: TrainRecipe) -> str:
    """The best and the worst held-out rows of the best judgement, as pictures."""
    if not path.is_file() or recipe.validation is None:
        return ""
    rows = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda row: row["iou"])
    parts = parts_of(recipe.validation.data)
    chosen = rows if len(rows) <= 2 * SHOWN else [*rows[:SHOWN], *rows[-SHOWN:]]
    shown = "".join(
        f'<figure><img src="{pictures.pair(row, parts, recipe.seed)}" alt="">'
        f"<figcaption>{escape(row['part'])} row {row['row']}, IoU {row['iou']:.3f}</figcaption></figure>"
        for row in chosen
    )
    return (
        f"<h2>Held-out rows, worst first ({len(chosen)} of {len(rows)})</h2>"
        f"<p>On the left what is marked, on the right what the best checkpoint found.</p>"
        f'<div class="rows">{shown}</div>'
    )
