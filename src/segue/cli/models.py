"""`segue models`: the released checkpoints, what they need, and what was published of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from segue.cli import options
from segue.cli.console import VisibleConsole

if TYPE_CHECKING:
    from segue.checkpoints.catalogue import CatalogueEntry

_NEEDS = (
    "Weights in GB on the device; int8 and int4 are --quantize, with all else in bf16. Image and video are estimates "
    "of what a question needs besides, in bf16: an image in its most tiles; a video with 16 objects, of which "
    "the language model is shown as many frames as the family is (LongVA: 128)."
)
_ORIGINS = (
    "A licence is what the checkpoint's card states, 'see card' that we have not read it; behind the plus stands a "
    "narrower one of the language model inside, which goes on holding."
)
_PUBLISHED = (
    "Scores are published ones: cIoU of RefCOCO, + and g; J&F of videos (MeViS u: the part with known truth). Nothing "
    "here was measured by Segue."
)


def command(as_json: options.Json = False) -> None:
    """List the released checkpoints: sizes, memory, licences, published scores.

    Any of them is a --model by its hub id. Numbers are counted, not loaded.
    """
    from segue.checkpoints.catalogue import catalogue

    models = catalogue()
    if as_json:
        print(json.dumps([asdict(model) for model in models]))
        return
    console = VisibleConsole(highlight=False)
    for table, note in ((_needs, _NEEDS), (_origins, _ORIGINS), (_published, _PUBLISHED)):
        console.show(table(models))
        console.print(note)


def _table(words: Sequence[str], figures: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for title in words:
        table.add_column(title, no_wrap=True)
    for title in figures:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _needs(models: Sequence[CatalogueEntry]) -> Table:
    precisions = ("fp32", "bf16", "int8", "int4")
    table = _table(["model"], ["numbers", *precisions, "image", "video"])
    for model in models:
        sizes = (*(model.weights[name] for name in precisions), model.image, model.video)
        table.add_row(model.repository, f"{model.parameters / 1e9:.3f} B", *(f"{size / 1e9:.1f}" for size in sizes))
    return table


def _origins(models: Sequence[CatalogueEntry]) -> Table:
    table = _table(["model", "made from", "licence", "videos"])
    for model in models:
        stated, part = model.release.licence or "see card", model.release.part_licence
        table.add_row(model.name, model.release.base, f"{stated} + {part}" if part else stated, model.policy)
    return table


def _published(models: Sequence[CatalogueEntry]) -> Table:
    table = _table(["model"], ["RefCOCO / + / g", "MeViS u", "MeViS", "YT-VOS", "DAVIS17", "MME", "MMBench"])
    videos = [(name,) for name in ("mevis_u", "mevis", "ref_ytvos", "davis17")]
    columns = [("refcoco", "refcoco+", "refcocog"), *videos, ("mme_perception", "mme_cognition"), ("mmbench",)]
    for model in models:
        table.add_row(model.name, *(_joined(model.release.scores, names) for names in columns))
    return table


def _joined(scores: Mapping[str, float | int], names: Sequence[str]) -> str:
    """Figures with slashes between them; empty if they were not published."""
    return "/".join(f"{scores[name]:{'.0f' if 'mme' in name else '.1f'}}" for name in names if name in scores)
