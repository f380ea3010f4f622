"""Training with what the frozen tower makes of pictures kept: the same losses, and nothing encoded twice."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from segue.errors import ConfigError
from segue.features import Store
from segue.media import open_media
from segue.train import run_logger
from segue.train.examples import RowMaker, collate, frame_keys
from segue.train.from_scratch.objectives import OBJECTIVES
from segue.train.loss_module import LossModule
from segue.train.recipe import LossWeights, ParameterGroup
from segue.train.run import train
from segue.types import Message, Sample


def losses(run):
    return [line["loss"] for line in run_logger.lines(run / "log.jsonl") if line["kind"] == "step"]


def test_46_losses_are_the_same_with_a_cache_and_the_second_epoch_encodes_nothing(make_recipe, watcher, tmp_path):
    recipe = make_recipe(stage={"steps": 8})
    train(recipe, watcher, device="cpu")
    cached = replace(recipe, output=tmp_path / "cached", cache=tmp_path / "cache")
    train(cached, watcher, device="cpu")
    assert losses(cached.output) == losses(recipe.output)
    assert any("stage only: features: 4 hits, 4 misses (50.0 %)" in line for line in watcher.said)
    again = replace(cached, output=tmp_path / "again")
    train(again, watcher, device="cpu")
    assert losses(again.output) == losses(recipe.output)
    assert any("stage only: features: 8 hits, 0 misses (100.0 %)" in line for line in watcher.said)


@pytest.mark.parametrize("how", ["full", "lora"])
def test_46_a_recipe_that_trains_the_tower_is_refused(make_recipe, watcher, tmp_path, how):
    groups = {"vision": ParameterGroup(how=how), "connector": ParameterGroup(how="full")}
    recipe = make_recipe(stage={"groups": groups}, cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"trains vision, whose features a cache keeps.*without --cache"):
        train(recipe, watcher, device="cpu")


def test_frames_of_a_video_are_kept_one_by_one(make_engine, tmp_path):
    engine = make_engine()
    cache = engine.use_cache(Store(tmp_path / "cache", reserve=0))
    make = pickle.loads(pickle.dumps(RowMaker(processor=engine.processor, side=None, features=cache)))  # noqa: S301
    media = open_media(np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), dtype=np.uint8))

    def row(*frames):
        turns = (Message.user("What?", media), Message("assistant", ("A thing.",)))
        return make(Sample(f"{frames}", "chat", turns, frames=frames))

    module = LossModule(
        engine.model, weights=LossWeights(), seg_id=engine.processor.seg_id, objective=OBJECTIVES["joint"]
    )
    module.features = cache
    first, plain = collate([row(0, 2, 4)], engine.processor), RowMaker(processor=engine.processor, side=None)
    computed = module.visual_features(first)
    other = collate([row(4, 2)], engine.processor)
    assert other.shown[0].pixels is None and make.features.usage.hits == 2
    tokens = len(computed) // 3
    expected = torch.cat([computed[2 * tokens :], computed[tokens : 2 * tokens]])
    assert torch.allclose(module.visual_features(other), expected, atol=1e-5)
    make = plain
    assert torch.equal(first.batch.input_ids, collate([row(0, 2, 4)], engine.processor).batch.input_ids)


def test_a_window_of_deep_pictures_stays_in_the_key_of_each_frame():
    assert frame_keys(("s", "0,4 window:0:9")) == [("s", "0 window:0:9"), ("s", "4 window:0:9")]
    assert frame_keys(("s", "tiles:12 window:0:9")) == [("s", "tiles:12 window:0:9")]
