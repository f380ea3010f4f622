from pathlib import Path

import pytest

from segue import config
from segue.errors import ConfigError
from segue.train.recipe import Lora, ParameterGroup, Stage, TrainRecipe, Validation

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_house_is_read(path):
    recipe = config.load(TrainRecipe, path)
    assert recipe.data and recipe.stages


def test_there_are_recipes():
    assert RECIPES


def test_a_recipe_says_no_more_than_it_must(make_recipe, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: demo\noutput: run\ndata: [{dataset: folder, root: mine}]\nstages: [{name: one, epochs: 1}]\n"
    )
    recipe = config.load(TrainRecipe, tmp_path / "r.yaml")
    stage = recipe.stages[0]
    assert (stage.rate, stage.warmup, stage.weight_decay, stage.betas, recipe.clip) == (
        4e-5,
        0.05,
        0.05,
        (0.9, 0.999),
        1.0,
    )
    assert {name: group.how for name, group in stage.groups.items()} == {
        "connector": "full",
        "language": "lora",
        "embeddings": "full",
        "seg_projector": "full",
        "mask_decoder": "full",
    }
    (tmp_path / "again.yaml").write_text(config.dump(recipe))
    assert config.load(TrainRecipe, tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Stage(name="a"), "has steps None and epochs None; give one of them"),
        (lambda: Stage(name="a", steps=1, epochs=1.0), "give one of them"),
        (lambda: Stage(name="a/b", steps=1), "a folder gets that name"),
        (lambda: Stage(name="a", steps=0), "steps is 0; expected 1 or more"),
        (lambda: Stage(name="a", steps=1, rate=0.0), "rate 0.0"),
        (lambda: Stage(name="a", steps=1, groups={"vision": ParameterGroup(how="frozen")}), "trains nothing"),
        (lambda: Stage(name="a", steps=1, rate=float("nan")), "rate nan"),
        (lambda: Stage(name="a", steps=1, weight_decay=float("nan")), "weight_decay nan"),
        (lambda: Stage(name="a", steps=1, betas=(0.9, 1.0)), r"betas \(0.9, 1.0\) is out of range"),
        (lambda: Stage(name="a", epochs=float("inf")), "has inf epochs"),
        (lambda: Stage(name="a", epochs=0.0), "has 0.0 epochs; expected more than 0"),
        (lambda: Stage(name="a", steps=10**20), "steps; expected at most 10,000,000"),
        (lambda: ParameterGroup(how="full", rate=0.0), "a group's rate is 0.0; expected more than 0, or how: frozen"),
        (lambda: ParameterGroup(how="full", rate=-1e-4), "a group's rate is -0.0001"),
        (lambda: Lora(rank=0), "rank 0"),
        (lambda: Lora(alpha=float("nan")), "alpha nan"),
        (lambda: Validation(data=()), "names no data"),
    ],
)
def test_what_makes_no_sense_is_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize(("change", "text"), [({"seed": -1}, "seed is -1"), ({"clip": float("nan")}, "clip nan")])
def test_a_seed_or_clip_that_is_none_is_refused(make_recipe, change, text):
    with pytest.raises(ConfigError, match=text):
        make_recipe(**change)


def test_two_stages_of_one_name_are_refused(make_recipe):
    stage = make_recipe().stages[0]
    with pytest.raises(ConfigError, match="each name once"):
        make_recipe(stages=(stage, stage))
