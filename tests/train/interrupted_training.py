"""Trains a recipe once in peace and once with a stop on the way, in the processes that a launcher started.

accelerate launch ... interrupted_training.py RECIPE LIMIT: writes the runs `whole` and `stopped` beside the recipe.
"""

import sys
from dataclasses import replace
from pathlib import Path

from segue import config
from segue.train.recipe import TrainRecipe
from segue.train.run import train


class Silent:
    """Looks away from a run."""

    def say(self, text):
        pass

    def start(self, stage, steps, done):
        pass

    def step(self, step, values):
        pass


def main() -> None:
    path = Path(sys.argv[1])
    recipe = config.load(TrainRecipe, path)
    whole, stopped = (replace(recipe, output=path.parent / name) for name in ("whole", "stopped"))
    train(whole, Silent(), device="cpu")
    train(stopped, Silent(), device="cpu", limit=int(sys.argv[2]))
    train(stopped, Silent(), device="cpu", resume=True)


if __name__ == "__main__":
    main()
