"""A model without a grounder learns words: a Qwen-VL on generated pages, shown larger than its base was."""

import json
from pathlib import Path

import pytest

from segue import config, loading
from segue.checkpoints import adapters
from segue.checkpoints.merge import merge
from segue.checkpoints.random_weights import random_checkpoint
from segue.errors import ConfigError
from segue.models import gptq
from segue.train import checkpoints, run, stages
from segue.train.recipe import DatasetSpec, LossWeights, ParameterGroup, Stage, TrainRecipe

RECIPES = Path(__file__).parents[2] / "recipes"


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


@pytest.mark.parametrize("how", ["full", "lora"])
def test_packed_layers_do_not_learn(folder, how):
    engine = loading.load(folder, device="cpu", dtype="fp32")
    gptq.pack_layers(engine.model.mllm.language_model.model.layers, 32)
    stage = Stage(name="one", steps=1, groups={"language": ParameterGroup(how=how)})
    with pytest.raises(ConfigError, match=r"layers of language are packed in 4 bits \(GPTQ\) and cannot learn"):
        stages.switch_on(engine.model, stage, engine.processor, seed=0)


def test_rows_of_tokens_that_a_model_lacks_are_refused(folder):
    engine = loading.load(folder, device="cpu", dtype="fp32")
    stage = Stage(name="one", steps=1, groups={"embeddings": ParameterGroup(how="rows")})
    with pytest.raises(ConfigError, match=r"none of the tokens \[SEG\], <p>"):
        stages.switch_on(engine.model, stage, engine.processor, seed=0)


@pytest.mark.parametrize("bits", ["none", "4bit"])
def test_the_published_lora_learns_its_layers_and_the_embeddings_and_is_merged(folder, watcher, tmp_path, bits):
    if bits == "4bit":
        pytest.importorskip("bitsandbytes", reason="needs the extra `quant`")
    said = [{"from": "user", "value": "Where?"}, {"from": "assistant", "value": "<ref>it</ref><box>(0,0),(9,9)</box>"}]
    (tmp_path / "conversations.json").write_text(json.dumps([{"conversations": said}]))
    data = f"data=[{{dataset: qwen_chat, root: {tmp_path}}}]"
    few = ("stages.0.epochs=null", "stages.0.steps=2", "accumulation=1", "workers=0", "precision=fp32")
    sets = [f"model={folder}", f"output={tmp_path / 'run'}", data, f"stages.0.lora.quantize={bits}", *few]
    run.train(config.load(TrainRecipe, RECIPES / "qwen_vl_lora.yaml", sets), watcher, device="cpu")
    learned = set(checkpoints.read_all(adapters.find(tmp_path / "run") / adapters.TENSORS))
    parts = {name.rpartition(".")[0].rpartition(".")[2] for name in learned if ".lora_" in name}
    assert parts == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj"}
    assert {"mllm.language_model.lm_head.weight", "mllm.language_model.model.embed_tokens.weight"} <= learned
    merge(adapters.find(tmp_path / "run"), tmp_path / "merged", dtype="fp32")
    told = [
        loading.load(tmp_path / name, device="cpu", dtype="fp32").ask(None, "Where?").text for name in ("run", "merged")
    ]
    assert told[0] and told[0] == told[1]
