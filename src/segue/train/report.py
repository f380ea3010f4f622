"""`report.html`: how a run went, on one page that needs nothing beside it.

Rows have numbers, never file names; the best and the worst of the held-out ones are shown.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from segue import config
from segue.checkpoints import adapters
from segue.files import atomic_path
from segue.output import pages
from segue.train import pictures
from segue.train.batch_stream import parts_of
from segue.train.recipe import TrainRecipe
from segue.train.run_logger import LOG, lines

log = logging.getLogger(__name__)

REPORT, CASES = "report.html", "validation.json"
SHOWN = 3


def write(run: Path, recipe: TrainRecipe) -> Path:
    """Write the report of a run that has a checkpoint; returns its path.

    Raises: CheckpointError, MediaError, if it cannot be read or written.
    """
    said = lines(run / LOG)
    steps = [line for line in said if line["kind"] == "step"]
    # the second is the word of runs that began before
    evaluated = [line for line in said if line["kind"] in ("evaluated", "judged")]
    best = adapters.find(run)
    assert best is not None
    record = adapters.read(best)
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
        pages.chart("loss", {name: _points(steps, name) for name in ("loss", "text")}),
        pages.chart("loss of masks", {name: _points(steps, name) for name in ("mask", "dice", "align", "iou")}),
        pages.chart("validation", {name: _points(evaluated, name) for name in figures}),
        pages.chart("learning rate", {"rate": _points(steps, "rate")}),
    ]
    parts = [
        pages.table(facts),
        f'<div class="charts">{"".join(charts)}</div>',
        _cases(run / CASES, recipe),
        "".join(f"<h2>Stage</h2><pre>{escape(line['text'])}</pre>" for line in said if line["kind"] == "stage"),
        f"<h2>Recipe</h2><pre>{escape(config.dump(recipe))}</pre>",
    ]
    with atomic_path(run / REPORT) as path:
        path.write_text(
            pages.page(run.name, f"{run.name}: training", parts), encoding="utf-8", errors="backslashreplace"
        )
    return run / REPORT


def _points(said: Sequence[Mapping[str, Any]], name: str) -> pages.Points:
    return [(float(line["step"]), float(line[name])) for line in said if isinstance(line.get(name), int | float)]


def _cases(path: Path, recipe: TrainRecipe) -> str:
    """The best and the worst held-out rows of the best evaluation, as pictures."""
    if not path.is_file() or recipe.validation is None:
        return ""
    parts = parts_of(recipe.validation.data)
    try:
        rows = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda row: row["iou"])
        chosen = rows if len(rows) <= 2 * SHOWN else [*rows[:SHOWN], *rows[-SHOWN:]]
        shown = [
            (pictures.pair(row, parts, recipe.seed), f"{row['part']} row {row['row']}, IoU {row['iou']:.3f}")
            for row in chosen
        ]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        log.warning("%s is damaged (%s), so the report shows no held-out rows", path, error)
        return ""
    return (
        f"<h2>Held-out rows, worst first ({len(chosen)} of {len(rows)})</h2>"
        f"<p>On the left what is marked, on the right what the best checkpoint found.</p>{pages.gallery(shown)}"
    )
