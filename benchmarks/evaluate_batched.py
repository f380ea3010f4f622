"""How much faster is a benchmark asked in batches than one question at a time?

    python benchmarks/evaluate_batched.py [--model demo] [--stills 12] [--clips 3] [--batch 16] [--threads 2]

The questions of `scenes_test` about its first stills and clips are asked twice of one model by the runner of `segue
evaluate`, with `--batch 1` and with `--batch N`, and scored. Scenes are drawn before. The two are timed in turns, a few
scenes at a time, by the clock and in processor time. Answers must be equal: the same words, and masks that agree but
for one pixel in ten thousand.

The exit code is 1 if batches are not twice as fast in processor time, or answers differ.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import segue
from segue.data.base import Rows, rng_for
from segue.evals.base import EvaluatedModel
from segue.evals.benchmarks import BENCHMARKS
from segue.evals.run import answer_store, rows, runner
from segue.evals.run.evaluation import Evaluation
from segue.progress import UNWATCHED
from segue.synth import questions
from segue.types import Answer, Sample

WANTED = 2.0
ALIKE = 1e-4
"""Share of a mask's pixels that may differ: sums in another order move a logit that is almost 0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--stills", type=int, default=12)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--batch", type=int, default=runner.BATCH)
    parser.add_argument("--turn", type=int, default=5, help="scenes that are asked about before the other way's turn")
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    # threads that wait should give way to others, not spin and count as work
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.set_num_threads(settings.threads)
    print(f"$ python benchmarks/evaluate_batched.py {' '.join(sys.argv[1:])}".rstrip())
    names = ", ".join(f"{name} {version(name)}" for name in ("segue", "torch", "transformers"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}")
    model = segue.load(settings.model)
    drawn = list(turns(settings.stills, settings.clips, settings.turn))
    count = sum(map(len, drawn))
    print(f"{count} questions about {settings.stills} stills and {settings.clips} clips, {settings.threads} threads\n")
    asked(drawn[0][:2], model, 1)  # what is done once is done
    seconds = {1: np.zeros(2), settings.batch: np.zeros(2)}
    differing = 0
    for samples in drawn:
        answers = {}
        for batch, spent in seconds.items():
            before = np.array([time.perf_counter(), time.process_time()])
            answers[batch] = asked(samples, model, batch)
            spent += np.array([time.perf_counter(), time.process_time()]) - before
        pairs = zip(answers[1], answers[settings.batch], strict=True)
        differing += sum(not is_same(one, other) for one, other in pairs)
    for batch, (clock, processor) in seconds.items():
        print(
            f"batch {batch:2}  {clock:7.1f} s, {processor:7.1f} CPU s, {1e3 * processor / count:6.1f} ms per question"
        )
    ratios = seconds[1] / seconds[settings.batch]
    print(f"one at a time / batches of {settings.batch} = {ratios[0]:.2f}x by the clock, {ratios[1]:.2f}x in CPU time")
    print(f"answers that differ: {differing}")
    sys.exit(0 if ratios[1] >= WANTED and not differing else 1)


def turns(stills: int, clips: int, size: int) -> Iterator[list[Sample]]:
    """The samples of all questions, those about `size` scenes at a time."""
    dataset = questions.load(Path(), "test", stills=stills, clips=clips)
    scenes: dict[str, list[Sample]] = {}
    for index in range(len(dataset)):
        sample = dataset.get(index, rng_for(0, 0, index))
        scenes.setdefault(sample.group or sample.id, []).append(sample)
    parts = list(scenes.values())
    for start in range(0, len(parts), size):
        yield [sample for part in parts[start : start + size] for sample in part]


def asked(samples: Sequence[Sample], model: EvaluatedModel, batch: int) -> list[Answer]:
    """The answers to some samples, as the runner leaves them on the disk."""
    dataset = Rows("scenes", samples, lambda sample, _: sample, lambda sample: sample.group)
    with TemporaryDirectory() as folder:
        evaluation = Evaluation(benchmark=BENCHMARKS["scenes_test"], data=Path(), out=Path(folder))
        runner.run(evaluation, dataset, lambda: model, UNWATCHED, batch=batch)
        lines = rows.gathered(Path(folder))
    if failed := [line["error"] for line in lines.values() if line["status"] == "failed"]:
        sys.exit(f"{len(failed)} questions failed, such as: {failed[0]}")
    return [answer_store.from_json(line["answer"]) for line in lines.values()]


def is_same(one: Answer, other: Answer) -> bool:
    """Whether two answers have the same words and masks."""
    tracks = [[region.masks for region in answer.regions if region.masks is not None] for answer in (one, other)]
    if one.raw_text != other.raw_text or len(tracks[0]) != len(tracks[1]):
        return False
    return all(np.mean(np.asarray(mine) != np.asarray(theirs)) <= ALIKE for mine, theirs in zip(*tracks, strict=True))


if __name__ == "__main__":
    main()
