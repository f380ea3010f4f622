from dataclasses import replace

import pytest

from segue.train.loss_module import LossWeights
from segue.train.recipe import ParameterGroup, Validation
from segue.train.run import train

ALL = ("vision", "connector", "language", "embeddings", "seg_projector", "mask_decoder", "image_encoder")


@pytest.mark.slow  # about a minute
def test_four_pictures_are_learned_by_heart(make_recipe, watcher):
    stage = {
        "steps": 290,
        "rate": 1e-3,
        "groups": {name: ParameterGroup(how="full") for name in ALL},
        "losses": LossWeights(align=1.0, iou=1.0),
        "weight_decay": 0.0,
    }
    recipe = make_recipe(stage=stage, batch=4, log_every=10)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=290))
    outcome = train(recipe, watcher, device="cpu")
    assert outcome.metrics["dice"] > 0.95
