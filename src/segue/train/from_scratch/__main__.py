"""Teach a model of scenes one part after another, by the clock: `python -m segue.train.from_scratch STATE`.

STATE is a folder. It holds the model as it was last judged (`STATE/model`, which every command takes) and `log.jsonl`.
The same command again goes on from there, with other scenes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic

import torch

from segue import loading
from segue.files import recover, replace_folder
from segue.synth import Scene
from segue.train.from_scratch.parts import Plan, clips, grounded, learn_masks, learn_sight, learn_words, stills

EVERY = 60.0
"""Seconds between two lines that say how far drawing and hearing are."""
HELD, HELD_CLIPS = 64, 16
"""Stills and clips of the validation split that a part is judged by."""


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stderr.write(f"{text}\n")


def watched(doing: str, scenes: Iterable[Scene], total: int) -> Iterator[Scene]:
    """The scenes one by one; from time to time a line says how far that is."""
    began = told = monotonic()
    for done, one in enumerate(scenes):
        if done and (now := monotonic()) - told >= EVERY:
            told = now
            say(f"{doing}: {done} of {total}, about {(now - began) * (total - done) / done / 60:.0f} minutes left")
        yield one


def main() -> None:
    """Read the command line, draw, learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path, help="folder that the model is kept in")
    parser.add_argument("--base", default="demo", help="the model to begin from, where STATE has none yet")
    parser.add_argument("--scenes", type=int, default=4000, help="how many stills to draw")
    parser.add_argument("--clips", type=int, default=0, help="how many clips; the tower learns from stills alone")
    parser.add_argument("--sight", type=float, default=0, metavar="SECONDS", help="of processor time for the tower")
    parser.add_argument("--words", type=float, default=0, metavar="SECONDS", help="of it for the language model")
    parser.add_argument("--masks", type=float, default=0, metavar="SECONDS", help="of it for the grounder")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.state.mkdir(parents=True, exist_ok=True)
    recover(chosen.state)
    folder = chosen.state / "model"
    engine = loading.load(folder if folder.exists() else chosen.base, device="cpu", dtype="fp32")

    def keep(figures: Mapping[str, object]) -> None:
        with (chosen.state / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        say("  ".join(f"{name} {value}" for name, value in figures.items()))
        part = chosen.state / "model.part"
        shutil.rmtree(part, ignore_errors=True)
        engine.save(part)
        replace_folder(folder, part)

    say(f"drawing {chosen.scenes} stills and {chosen.clips} clips")
    first = int(torch.randint(1_000_000, ()))  # new scenes each time
    scenes = list(watched("drawing stills", stills("train", first, chosen.scenes), chosen.scenes))
    held = list(stills("validation", 0, HELD))
    if chosen.sight:
        learn_sight(engine.model, scenes, held, Plan(chosen.sight, 1.5e-3, 4), keep)
    scenes += watched("drawing clips", clips("train", first, chosen.clips), chosen.clips)
    if chosen.words:
        seen = watched("encoding", scenes, len(scenes))
        learn_words(engine.model, engine.processor, seen, held, Plan(chosen.words, 1.2e-3, 2), keep)
    if chosen.masks:
        held += clips("validation", 0, HELD_CLIPS if chosen.clips else 0)
        seen = watched("listening to the language model", scenes, len(scenes))
        told, held_told = (grounded(engine.model, engine.processor, some) for some in (seen, held))
        learn_masks(engine.model, told, held_told, Plan(chosen.masks, 6e-4, 2), keep)


if __name__ == "__main__":
    main()
