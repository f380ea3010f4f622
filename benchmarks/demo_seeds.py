"""How `segue demo` does over many seeds: every phrase with its score, the mean IoU, and how many phrases are wrong.

A phrase is wrong where its IoU is below 0.5: the thing was not found, another one was, or something was found that is
not there.

    python benchmarks/demo_seeds.py                          # 20 seeds from 1000 on, the model that ships
    python benchmarks/demo_seeds.py --model runs/demo --seeds 50 --first 0
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from segue import demo
from segue.engine import Engine
from segue.loading import load
from segue.options import Options
from segue.types import FrameMasks, ObjectsFound

WRONG = 0.5


def main() -> None:
    """Ask about every seed's still and clip, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder, a training run, a hub id, or demo")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=1000, help="the first of them")
    chosen = parser.parse_args()
    engine, scores = load(chosen.model, device="cpu"), []
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        mine = list(asked(engine, seed))
        print(f"seed {seed}: mean IoU {np.mean([score for _, _, score in mine]):.2f}")
        for name, words, score in mine:
            print(f"  {score:.2f}  {name}: {words}{'  WRONG' if score < WRONG else ''}", flush=True)
        scores += [score for _, _, score in mine]
    wrong = sum(score < WRONG for score in scores)
    print(
        f"{chosen.seeds} seeds, {len(scores)} phrases: mean IoU {np.mean(scores):.2f}, {wrong / len(scores):.0%} wrong"
    )


def asked(engine: Engine, seed: int) -> Iterator[tuple[str, str, float]]:
    """Input, phrase and score of all that the demo of a seed asks for."""
    for challenge in demo.challenges(seed):
        words = [phrase.words["en"] for phrase in challenge.phrases]
        found = {one: np.zeros(challenge.scene.frames.shape[:3], dtype=bool) for one in words}
        names: list[str] = []
        for event in engine.stream_segment(challenge.scene.media, words, Options()):
            if isinstance(event, ObjectsFound):
                names = [region.phrase for region in event.regions]
            if isinstance(event, FrameMasks):
                for name, mask in zip(names, event.masks, strict=True):
                    found[name][event.index] |= mask
        for phrase in challenge.phrases:
            yield challenge.name, phrase.words["en"], challenge.score(phrase, found[phrase.words["en"]])


if __name__ == "__main__":
    main()
