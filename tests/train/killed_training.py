"""Kills a training at every step it takes on the disk, lets it go on, and compares with a run left in peace.

python killed_training.py RECIPE ROOT FIRST STEP: kills at the FIRST touch of the run folder, then at FIRST + STEP and
so on, each time into a fresh folder under ROOT, until a run ends before it is killed. Prints how often it killed; exits
with a message if more was lost than the steps since the last checkpoint. Children are forked, because starting Python
takes longer than the runs do.
"""

import os
import signal
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from segue import config
from segue.checkpoints import adapters
from segue.errors import CheckpointError
from segue.train import checkpoints, run_logger
from segue.train.recipe import TrainRecipe
from segue.train.run import train

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


class Silent:
    """Looks away from a run."""

    def say(self, text):
        pass

    def start(self, stage, steps, done):
        pass

    def step(self, step, values):
        pass


def kill_at(touch: int, out: Path) -> None:
    """Make this process die without a word just before its n-th touch of the folder."""
    touches = count(1)

    def hook(event: str, arguments: tuple) -> None:
        is_touch = event in TOUCHES and str(arguments[0]).startswith(str(out))
        if is_touch and next(touches) == touch:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run_child(recipe: TrainRecipe, touch: int | None = None, *, resume: bool = False) -> int:
    """How a run in a child ended: as `os.waitpid` says it, 0 if well."""
    child = os.fork()
    if child == 0:
        if touch is not None:
            kill_at(touch, recipe.output)
        train(recipe, Silent(), resume=resume, device="cpu")
        os._exit(0)
    return os.waitpid(child, 0)[1]


def learned(run: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read_all(adapters.find(run) / adapters.TENSORS)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run_logger.lines(run / "log.jsonl") if line["kind"] == "step"]


def check_whole(run: Path) -> None:
    """Every checkpoint that a reader sees can be read, all of it; and of saved steps the newest is there."""
    try:
        found = checkpoints.checkpoints(run) if (run / "checkpoints").is_dir() else {}
    except CheckpointError as error:
        sys.exit(f"{run}: {error}")
    for folder, record in found.items():
        if checkpoints.weights.file_hash(folder / adapters.TENSORS) != record.tensors_hash:
            sys.exit(f"{folder} is damaged")
    told = [step for step, _ in losses(run)]
    # saved after every step: the step that was at work is all that may be lost
    if told and max(told) - max([record.step for record in found.values()], default=0) > 1:
        sys.exit(f"{run} was told to be at step {max(told)} and has {[folder.name for folder in found]}")


def main() -> None:
    recipe, root, first, stride = (
        config.load(TrainRecipe, Path(sys.argv[1])),
        Path(sys.argv[2]),
        *map(int, sys.argv[3:]),
    )
    peace = replace(recipe, output=root / "peace")
    if run_child(peace):
        sys.exit("the run that was left in peace failed")
    for kills in count():
        killed = replace(recipe, output=root / f"killed-{first + kills * stride}")
        if run_child(killed, first + kills * stride) == 0:
            break
        check_whole(killed.output)
        if run_child(killed, resume=(killed.output / "recipe.yaml").exists()):
            sys.exit(f"{killed.output} did not go on")
        one, other = learned(peace.output), learned(killed.output)
        if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
            sys.exit(f"{killed.output} ended with other weights")
        if losses(peace.output) != losses(killed.output):
            sys.exit(f"{killed.output} tells of other losses")
        litter = sorted(path.name for path in killed.output.rglob(".*"))
        if litter:
            sys.exit(f"{killed.output} has {litter} lying about")
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main()
