"""Questions of an evaluation asked one at a time and in batches: how much faster, and whether the answers are equal.

    python benchmarks/batched.py                    # the demo model on the first rows of scenes_test
    python benchmarks/batched.py --rows 1 4 16 --count 240

Both ways are measured in turns within one run, and every answer is compared: text, boxes and masks. Times of a machine
that others share say little; the ratio says more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter, process_time

import torch

from segue import load
from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.engine import Engine, Options
from segue.types import Answer, Message

OPTIONS = Options(max_new_tokens=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--count", type=int, default=160, help="questions, from the first on")
    parser.add_argument("--first", type=int, default=0, help="number of the first question")
    parser.add_argument("--rows", type=int, nargs="+", default=[16], help="dialogues decoded together")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    engine = load(given.model, device="cpu", dtype="fp32")
    dataset = DATASETS["scene_questions"](Path(), "test", stills=100, clips=30)
    samples = [dataset.get(index, rng_for(0, 0, index)) for index in range(given.first, given.first + given.count)]
    dialogues = [list(sample.messages[:-1]) for sample in samples]
    engine.answer_all(dialogues[:4], OPTIONS)
    seconds: dict[int, list[tuple[float, float]]] = {1: [], **{rows: [] for rows in given.rows}}
    wanted: list[Answer] = []
    for _ in range(given.repeats):
        for rows, found in seconds.items():
            wall, answers = timed(engine, dialogues, rows)
            found.append(wall)
            wanted = wanted or answers
            differ = sum(not is_equal(one, other) for one, other in zip(wanted, answers, strict=True))
            print(
                f"{rows:3d} together: {wall[0]:6.1f} s wall, {wall[1]:6.1f} s CPU, {differ} answers differ", flush=True
            )
    alone = [min(column) for column in zip(*seconds[1], strict=True)]
    for rows in given.rows:
        best = [min(column) for column in zip(*seconds[rows], strict=True)]
        print(f"{rows} together: {alone[0] / best[0]:.2f} x by wall, {alone[1] / best[1]:.2f} x by CPU time")


def timed(engine: Engine, dialogues: list[list[Message]], rows: int) -> tuple[tuple[float, float], list[Answer]]:
    """Wall and CPU seconds, and the answers; with 1 row every question is asked on its own."""
    engine.forget()
    wall, cpu = perf_counter(), process_time()
    if rows == 1:
        answers = [engine.answer(messages, OPTIONS) for messages in dialogues]
    else:
        answers = list(engine.answer_all(dialogues, OPTIONS, rows=rows))
    return (perf_counter() - wall, process_time() - cpu), answers


def is_equal(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same and point at the same pixels."""
    return (one.raw_text, one.regions) == (other.raw_text, other.regions) or (
        one.raw_text == other.raw_text
        and [region.masks and region.masks.rles for region in one.regions]
        == [region.masks and region.masks.rles for region in other.regions]
    )


if __name__ == "__main__":
    main()
