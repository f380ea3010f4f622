"""What the demo model makes of people's own words: things that no scene has, everything, plain descriptions.

    python benchmarks/plain_words.py                          # 20 stills of the test split, the model that ships
    python benchmarks/plain_words.py --model runs/parts/model --scenes 50

Told is in what share of the stills each was answered rightly. The nouns here are none of those that training asks for.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from segue.engine import Engine
from segue.loading import load
from segue.synth import Scene, scene

NOUNS = ("banana", "giraffe", "guitar", "laptop", "potato", "umbrella", "helicopter", "violin", "strawberry", "pencil")
DESCRIBE = ("What is in the picture?", "Describe the picture.", "What do you see?")


def main() -> None:
    """Ask about every still, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder, a training run, a hub id, or demo")
    parser.add_argument("--scenes", type=int, default=20, help="how many")
    chosen = parser.parse_args()
    engine = load(chosen.model, device="cpu")
    hits = defaultdict[str, list[bool]](list)
    for number in range(chosen.scenes):
        for what, is_right in asked(engine, scene(0, number, split="test"), NOUNS[number % len(NOUNS)]):
            hits[what].append(is_right)
    print(f"{chosen.scenes} stills of the test split, {engine.lineage['model_hash']}")
    for what, each in hits.items():
        print(f"{what:44}{np.mean(each):.2f}")


def asked(engine: Engine, shown: Scene, noun: str) -> Iterator[tuple[str, bool]]:
    """What is asked about a still, and whether the answer is right."""
    image, things = shown.frames[0], shown.things
    there = things[0]

    def found(phrase: str) -> int:
        return len(engine.segment(image, [phrase]).regions)

    yield "Is there a NOUN? denied", engine.ask(image, f"Is there a {noun}?").text.startswith("No")
    yield "Do you see a KIND? said to be there", engine.ask(image, f"Do you see a {there.kind}?").text.startswith("Yes")
    yield "the NOUN: not found", not found(f"the {noun}")
    yield "Where is the KIND? shown", bool(engine.ask(image, f"Where is the {there.kind}?").regions)
    yield "everything: as many as there are", found("everything") == len(things)
    alike = sum(one.colour == there.colour for one in things)
    yield "everything COLOUR: as many as there are", found(f"everything {there.colour}") == alike
    for question in DESCRIBE:
        named = len(engine.ask(image, question).regions)
        yield f"{question} all but one named", named >= max(1, len(things) - 1)


if __name__ == "__main__":
    main()
