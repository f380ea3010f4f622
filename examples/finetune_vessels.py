"""Fine-tune the demo model on thin vessels, from the data doctor to a threshold and a report, in minutes on a CPU.

    python examples/finetune_vessels.py [--output segue-out/vessels] [--steps 240]

Scans of made-up patients are drawn, looked at, and learned from; then the model before and the model after are asked
for the vessels of patients that neither has seen. Stop it when you like: the same command goes on where it stopped.
docs/finetune.md walks through it and says what to change for masks of your own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segue.cli.main import main as command_line
from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.evals.base import medium_of
from segue.evals.metrics.own_masks import best_threshold, joined
from segue.evals.run import report, rows
from segue.evals.run.answer_store import from_json
from segue.media import read_image
from segue.output.export import write_png
from segue.output.render import overlay

SIZE = "128x128"
THIN = ("--set", "stages.0.losses.dice=2", "--set", "validation.patience=null")
"""Overlap counts more than single pixels, and no early end: the last steps, at a low rate, bring the most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo", help="model to start from")
    parser.add_argument("--output", type=Path, default=Path("segue-out/vessels"))
    parser.add_argument("--images", type=int, default=160, help="to learn from, four of each patient")
    parser.add_argument("--steps", type=int, default=240)
    settings = parser.parse_args()
    data, run = settings.output / "data", settings.output / "run"

    draw(data, settings.images)
    do("doctor", data, "-o", settings.output / "doctor")
    goes_on = ["--resume"] if (run / "recipe.yaml").exists() else []
    do("finetune", data, "--base", settings.base, "--steps", settings.steps, "--output", run, *THIN, *goes_on)

    validation = score(run, data, settings.output / "validation", "--split", "val")
    threshold = best_threshold(validation["figures"], by="dice")
    scanned = {name: value for name, value in validation["figures"].items() if name.startswith("dice@")}
    print("\nvalidation split, Dice by threshold: ", end="")
    print(", ".join(f"{name.removeprefix('dice@')}: {value:.3f}" for name, value in scanned.items()))
    print(f"chosen: {threshold}")
    before = score(settings.base, data, settings.output / "before")
    after = score(run, data, settings.output / "after")
    chosen = score(run, data, settings.output / "chosen", "--threshold", threshold)
    tell({"before, at 0.5": before, "after, at 0.5": after, f"after, at {threshold}": chosen})
    show(data, settings.output)
    print(f"\npictures: {settings.output / 'pictures'}\nreport: {run / 'report.html'}")


def draw(data: Path, images: int) -> None:
    """Three folders of scans; no patient is in two of them."""
    held_out = max(4, images // 5)
    for split, name, count in (("train", "train", images), ("val", "validation", held_out), ("test", "test", held_out)):
        if not (data / split).exists():
            do("data", "synth", data / split, "--kind", "vessels", "--size", SIZE, "--split", name, "--count", count)


def score(model: Path | str, data: Path, out: Path, *more: object) -> report.Report:
    """The report of a model on a split, which is test if no other is named."""
    do("evaluate", model, "--on", data, "--output", out, "--overwrite", *more)
    (folder,) = out.iterdir()
    return report.read(folder)


def tell(table: Mapping[str, report.Report]) -> None:
    """Means over the test images, a line for each model and threshold."""
    names = ("dice", "iou", "precision", "recall", "emitted")
    print(f"\n{'test split':16}" + "".join(f"{name:>11}" for name in names))
    for title, made in table.items():
        print(f"{title:16}" + "".join(f"{made['figures'].get(name, float('nan')):11.3f}" for name in names))


def show(data: Path, out: Path) -> None:
    """The worst, the middle and the best test image: as it is, what is marked, what was found before and after."""
    before, after = (rows.gathered(out / name / "data_test") for name in ("before", "chosen"))
    order = sorted(after, key=lambda index: after[index]["row"]["dice"])
    test = DATASETS["folder_questions"](data, "test")
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for name, index in (("worst", order[0]), ("middle", order[len(order) // 2]), ("best", order[-1])):
        sample = test.get(index, rng_for(0, 0, index))
        media = medium_of(sample)
        assert media is not None
        pixels = enlarged(read_image(media))
        answers = (from_json(lines[index]["answer"]).regions for lines in (before, after))
        masks = [joined(regions, sample) for regions in (sample.regions, *answers)]
        drawn = [pixels, *(overlay(pixels, enlarged(mask[0])[None], [""]) for mask in masks)]
        write_png(out / "pictures" / f"{name}.png", np.concatenate(drawn, axis=1))


def enlarged(image: np.ndarray) -> np.ndarray:
    """Three times the side, so that outlines leave something of a thin thing to be seen."""
    return image.repeat(3, axis=0).repeat(3, axis=1)


def do(*words: object) -> None:
    """Run a command of Segue's as on the command line; where it fails or is stopped, so does this."""
    told = [str(word) for word in words]
    print(f"\n$ segue {' '.join(told)}", flush=True)
    try:
        command_line(told)
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    main()
