"""What `--memory pooled` costs in J&F: generated clips of the test split, followed from their first frame alone.

    python benchmarks/pooled_memory.py [--model demo] [--clips 60]

Each clip is asked for the first phrase of its questions that something on its first frame answers to, with both
memories. The frames that are followed count; the first one is found by its prompt and is the same for both. The
interval is 1.96 standard errors over clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import segue
from segue.engine import Engine
from segue.evals.metrics.masks import contour_accuracy, overlap, region_similarity
from segue.evals.metrics.own_masks import joined
from segue.options import Options
from segue.synth.questions import load
from segue.types import Sample

MEMORIES = ("exact", "pooled")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=int, default=60)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    model = segue.load(settings.model, device="cpu")
    rows = np.array([scores(model, sample) for sample in targets(settings.clips)])
    print(f"{settings.model}, {len(rows)} clips, frames that are followed")
    for name, column in zip(MEMORIES, rows.T, strict=False):
        print(f"{name:7} J&F {column.mean():.3f}")
    price = rows[:, 1] - rows[:, 0]
    print(f"pooled - exact = {price.mean():+.3f} +- {1.96 * price.std(ddof=1) / len(price) ** 0.5:.3f}")
    print(f"IoU of what both find: {rows[:, 2].mean():.3f}")


def targets(clips: int) -> list[Sample]:
    """A sample of each clip: the first phrase that something on the first frame answers to."""
    found: dict[str, Sample] = {}
    rows = load(Path(), "test", stills=0, clips=clips)
    for sample in (rows.get(index, np.random.default_rng(0)) for index in range(len(rows))):
        if sample.target["kind"] == "mask" and sample.group not in found and joined(sample.regions, sample)[0].any():
            found[sample.group] = sample
    return list(found.values())


def scores(model: Engine, sample: Sample) -> tuple[float, ...]:
    """J&F with each memory, and the IoU of the masks that both find."""
    truth, masks = joined(sample.regions, sample)[1:], []
    for memory in MEMORIES:
        answer = model.answer([sample.messages[0]], Options(frames="0", memory=memory, prefill="[SEG]"))
        masks.append(joined(answer.regions, sample)[1:])
    fits = [float((region_similarity(one, truth) + contour_accuracy(one, truth)).mean() / 2) for one in masks]
    both = overlap(*masks)
    union = both.found + both.truth - both.shared
    return *fits, both.shared / union if union else 1.0


if __name__ == "__main__":
    main()
