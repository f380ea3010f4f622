"""Two processes on one machine, as torchrun and accelerate launch start them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from segue import config
from segue.checkpoints import adapters
from segue.checkpoints.random_weights import random_checkpoint
from segue.data import image_chat
from segue.errors import ConfigError
from segue.train import checkpoints, run_logger, setup, zero
from segue.train.recipe import DatasetSpec, ParameterGroup, Validation
from segue.train.run import train

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate"
STOPPED = Path(__file__).with_name("interrupted_training.py")


def run_module(folder, *arguments):
    """Runs `python -m` of this Python in a folder, and expects it to end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", *(str(word) for word in arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def spread(recipe, folder, how, limit=2):
    """The runs `whole` and `stopped` of a recipe in two processes, spread as a config file says."""
    (folder / "recipe.yaml").write_text(config.dump(recipe))
    launcher = ("accelerate.commands.launch", "--config_file", CONFIGS / how, "--num_processes", 2)
    run_module(folder, *launcher, STOPPED, folder / "recipe.yaml", limit)
    return folder / "whole", folder / "stopped"


def launch(recipe, folder):
    (folder / "recipe.yaml").write_text(config.dump(recipe))
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    run_module(folder, *torchrun, "-m", "segue.cli.main", "train", "recipe.yaml", "--device", "cpu")


def steps(folder):
    return [line for line in run_logger.lines(folder / "log.jsonl") if line["kind"] == "step"]


@pytest.mark.slow  # half of its twenty seconds is three processes importing torch
def test_two_processes_learn_what_one_learns_from_the_same_samples(make_recipe, watcher, tmp_path):
    recipe = make_recipe()
    recipe = replace(recipe, stages=(replace(recipe.stages[0], lora=replace(recipe.stages[0].lora, dropout=0.0)),))
    pair = replace(recipe, output=tmp_path / "pair")
    launch(pair, tmp_path)
    alone = replace(recipe, accumulation=2)
    train(alone, watcher, device="cpu")
    one, two = steps(alone.output), steps(pair.output)
    # the points at which masks are judged are drawn per process, the words are not
    assert one[0]["text"] == pytest.approx(two[0]["text"], rel=1e-5)
    assert one[1]["text"] == pytest.approx(two[1]["text"], rel=1e-2)
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    names = [checkpoints.read_all(adapters.find(out) / adapters.TENSORS).keys() for out in (alone.output, pair.output)]
    assert names[0] == names[1]


@pytest.fixture
def held_out(tmp_path, draw):
    """A picture with a mask and a question without one: of two processes, one has nothing to judge."""
    draw(tmp_path / "one", 1)
    turns = [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "A square."}]
    talk = tmp_path / "talk"
    for name, text in ((image_chat.CONVERSATIONS, json.dumps([{"conversations": turns}])), ("pictures/none", "")):
        (talk / name).parent.mkdir(parents=True, exist_ok=True)
        (talk / name).write_text(text)
    square = DatasetSpec(dataset="folder", root=tmp_path / "one", split="all", options={"phrase": "the square"})
    chat = DatasetSpec(dataset="image_chat", root=talk, split="train", options={"images": "pictures"})
    return Validation(data=(square, chat), every=2)


@pytest.fixture
def pointing(make_recipe, held_out):
    """Masks, by LoRA; of two processes one has nothing to judge."""
    recipe = make_recipe(stage={"steps": 3, "lora": replace(make_recipe().stages[0].lora, dropout=0.0)})
    return replace(recipe, validation=held_out, save_every=1, keep=9)


@pytest.fixture
def seeing(make_recipe, draw, tmp_path):
    """All of a Qwen-VL, the tower too; where one process reads a text alone, the other may see a picture."""
    folder, root = random_checkpoint(tmp_path / "tiny-qwen-vl", "tiny-qwen-vl"), draw(tmp_path / "rows", 2)
    rows = [{"task": "caption", "image": f"images/{number}.png", "text": "a square"} for number in range(2)]
    rows += [{"task": "text", "text": f"the number {number}"} for number in range(3)]
    (root / "pretraining.jsonl").write_text("\n".join(map(json.dumps, rows)))
    groups = dict.fromkeys(("vision", "connector", "language", "embeddings"), ParameterGroup(how="full"))
    data = DatasetSpec(dataset="pretraining", root=root, split="train")
    return make_recipe(
        stage={"groups": groups, "steps": 3, "rate": 1e-5}, model=str(folder), data=(data,), save_every=1, keep=9
    )


@pytest.mark.slow  # three processes import torch
@pytest.mark.parametrize("learning", ["pointing", "seeing"])
@pytest.mark.parametrize(("how", "name"), [("fsdp2.yaml", "FSDP"), ("zero2.yaml", "DEEPSPEED")])
def test_a_run_spread_over_two_processes_goes_on_exactly_and_learns_what_one_process_does(
    request, watcher, tmp_path, learning, how, name
):
    if name == "DEEPSPEED" and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed, which no extra brings: pip install deepspeed")
    recipe = request.getfixturevalue(learning)
    whole, stopped = spread(recipe, tmp_path, how)
    assert json.loads((whole / "run.json").read_text())["distribution"] == name
    for file in ("trained.safetensors", "state/optimizer.safetensors"):
        one, other = (load_file(out / "checkpoints" / "step-000003" / file) for out in (whole, stopped))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert [line["loss"] for line in steps(whole)] == [line["loss"] for line in steps(stopped)]
    alone = replace(recipe, accumulation=2, validation=None)
    train(alone, watcher, device="cpu")
    one, two = steps(alone.output), steps(whole)
    assert one[0]["text"] == pytest.approx(two[0]["text"], rel=1e-5)
    assert one[1]["text"] == pytest.approx(two[1]["text"], rel=1e-2)
    # what learned apart is one model again, for every command
    shapes = [
        {k: t.shape for k, t in checkpoints.read_all(adapters.find(out) / adapters.TENSORS).items()}
        for out in (alone.output, whole)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("version", "layer", "text"),
    [
        ("1", None, "say fsdp_version: 2"),
        ("2", "LlamaDecoderLayer", "is LlamaDecoderLayer, but the language model is made of Qwen2DecoderLayer"),
    ],
)
def test_a_config_file_of_fsdp_that_does_not_suit_is_one_line(make_recipe, monkeypatch, version, layer, text):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": version, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    if layer:
        monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", layer)
    recipe = make_recipe()
    try:
        with pytest.raises(ConfigError, match=text):
            setup.prepare(recipe, 0, setup.first_base(recipe), setup.accelerator(recipe, device="cpu"))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("spread", ["FSDP", "DEEPSPEED"])
def test_muon_is_refused_where_matrices_are_spread(make_recipe, spread):
    recipe = make_recipe(stage={"optimizer": "muon"})
    launched = SimpleNamespace(distributed_type=SimpleNamespace(value=spread))
    with pytest.raises(ConfigError, match=f"stage 'only' asks for muon, which needs whole matrices, and {spread}"):
        setup.prepare(recipe, 0, setup.first_base(recipe), launched)


@pytest.mark.parametrize(
    ("stage", "device", "text"),
    [(3, "none", "ZeRO stage 3; expected stage 1 or 2"), (2, "cpu", "stage 2 with offload_optimizer; expected")],
)
def test_forms_of_deepspeed_that_no_run_could_go_on_from_are_refused(make_recipe, stage, device, text):
    plugin = SimpleNamespace(
        deepspeed_config={"zero_optimization": {"stage": stage, "offload_optimizer": {"device": device}}}
    )
    launched = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), num_processes=2)
    with pytest.raises(ConfigError, match=text):
        zero.settle(launched, make_recipe())


def test_deepspeed_is_told_what_the_recipe_says(make_recipe):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 1}})
    launched = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), num_processes=2)
    zero.settle(launched, make_recipe(batch=3, accumulation=4, clip=0.5))
    told = plugin.deepspeed_config
    assert (told["train_micro_batch_size_per_gpu"], told["train_batch_size"]) == (3, 24)
    assert (told["gradient_accumulation_steps"], told["gradient_clipping"]) == (4, 0.5)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is here")
def test_without_deepspeed_its_config_file_ends_in_one_line(make_recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="pip install deepspeed"):
        setup.accelerator(make_recipe(), device="cpu")
