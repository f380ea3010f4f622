"""Runs small enough for tests: four pictures with one object each, the tiny random model, a handful of steps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segue.train.recipe import DatasetSpec, Lora, ParameterGroup, Stage, TrainRecipe

LEARNING = {
    "language": ParameterGroup(how="lora"),
    "embeddings": ParameterGroup(how="rows"),
    "seg_projector": ParameterGroup(how="full"),
    "mask_decoder": ParameterGroup(how="full"),
}


class Silent:
    """Watches a run and remembers what it said."""

    def __init__(self):
        self.said, self.started, self.steps = [], [], []

    def say(self, text):
        self.said.append(text)

    def start(self, stage, steps, done):
        self.started.append((stage, steps, done))

    def step(self, step, values):
        self.steps.append((step, dict(values)))


@pytest.fixture
def watcher():
    return Silent()


def draw_folder(root: Path, count: int = 4) -> Path:
    """Pictures with a bright square each, and a mask of it."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        image, mask = np.full((80, 96, 3), 40, np.uint8), np.zeros((80, 96), np.uint8)
        top, left = 8 + 12 * (number % 3), 8 + 14 * (number % 4)
        image[top : top + 36, left : left + 36] = (220, 60 + 40 * (number % 4), 30)
        mask[top : top + 36, left : left + 36] = 255
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def draw():
    return draw_folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("pictures") / "mine")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate remembers the precision of a process's first run, and refuses another."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def make_recipe(official_folder, pictures, tmp_path):
    """A recipe over the pictures; keywords replace its fields, `stage` those of its one stage."""

    def make(*, stage=None, **changes):
        source = DatasetSpec(dataset="folder", root=pictures, split="all", options={"phrase": "the square"})
        one = {"name": "only", "steps": 2, "groups": LEARNING, "lora": Lora(rank=4, alpha=8.0), "rate": 1e-3}
        fields = {
            "model": str(official_folder),
            "output": tmp_path / "run",
            "data": (source,),
            "stages": (Stage(**{**one, **(stage or {})}),),
            "batch": 1,
            "precision": "fp32",
            "gradient_checkpointing": False,
            "workers": 0,
            "max_tiles": 1,
            "log_every": 1,
        }
        return TrainRecipe(**{**fields, **changes})

    return make
