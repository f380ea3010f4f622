"""A model without a grounder learns words: a Qwen-VL on generated pages, shown larger than its base was."""

import json

import pytest

from segue import loading
from segue.checkpoints.random_weights import random_checkpoint
from segue.errors import ConfigError
from segue.train import run
from segue.train.recipe import DatasetSpec, LossWeights, ParameterGroup, Stage, TrainRecipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("base") / "tiny-qwen-vl", "tiny-qwen-vl")


def recipe(folder, output, **changes):
    stage = Stage(
        name="all",
        steps=2,
        rate=1e-3,
        warmup=0.0,
        groups={
            "vision": ParameterGroup(how="full", layer_decay=0.9),
            "connector": ParameterGroup(how="full"),
            "language": ParameterGroup(how="full"),
            "embeddings": ParameterGroup(how="full"),
        },
        losses=LossWeights(mask=0.0, dice=0.0),
    )
    pages = DatasetSpec(dataset="pages", root=output.parent, split="train", options={"side": 128, "count": 4})
    fields = {"precision": "fp32", "batch": 2, "workers": 0, "gradient_checkpointing": False, "image_side": 168}
    return TrainRecipe(model=str(folder), output=output, data=(pages,), stages=(stage,), **fields | changes)


def test_words_are_learned_and_the_checkpoint_remembers_the_side(folder, watcher, tmp_path):
    run.train(recipe(folder, tmp_path / "run"), watcher, device="cpu")
    learned = loading.load(tmp_path / "run", device="cpu", dtype="fp32")
    base = loading.load(folder, device="cpu", dtype="fp32")
    assert (base.processor.side, learned.processor.side) == (112, 168)
    before, after = (one.model.mllm.connector for one in (base, learned))
    assert (before.output.weight != after.output.weight).any()
    assert (before.resampler.positions == after.resampler.positions).all()


def test_a_base_model_that_learns_dialogues_is_a_chat_model_from_then_on(tmp_path, watcher):
    base = random_checkpoint(tmp_path / "tiny-qwen-vl", "tiny-qwen-vl")
    (base / "generation_config.json").write_text('{"chat_format": "raw"}')
    raw = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({name: value for name, value in raw.items() if name != "template"}))
    run.train(recipe(base, tmp_path / "run", template="qwen_vl_chat"), watcher, device="cpu")
    before, after = (loading.load(one, device="cpu", dtype="fp32") for one in (base, tmp_path / "run"))
    assert (before.model.config.template, after.model.config.template) == ("qwen_vl_raw", "qwen_vl_chat")
    assert "<|im_start|>" in after.processor.template.user


def test_an_unknown_template_is_refused(folder, watcher, tmp_path):
    with pytest.raises(ConfigError, match="unknown chat template 'vicuna'"):
        run.train(recipe(folder, tmp_path / "run", template="vicuna"), watcher, device="cpu")


def test_a_side_that_does_not_cut_into_patches_is_refused(folder, watcher, tmp_path):
    with pytest.raises(ConfigError, match="multiple of 14"):
        run.train(recipe(folder, tmp_path / "run", image_side=100), watcher, device="cpu")
