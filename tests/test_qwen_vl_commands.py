"""The commands that every family has, with a tiny Qwen-VL that was taught to point."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segue import loading
from segue.checkpoints import zoo
from segue.checkpoints.random_weights import random_checkpoint
from segue.cli.chat import spoken
from segue.cli.main import application
from segue.media import open_media, read_image
from segue.output.export import write_png
from segue.types import Message

SAID = "It is <ref>the sign</ref><box>(0,0),(499,999)</box><quad>(500,500),(999,500),(999,999),(500,999)</quad>."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("base") / "tiny-qwen-vl", "tiny-qwen-vl")


@pytest.fixture
def photo(tmp_path):
    write_png(tmp_path / "photo.png", np.full((60, 80, 3), 200, np.uint8))
    return tmp_path / "photo.png"


@pytest.fixture
def taught(base, teach, photo, tmp_path):
    """A model folder that says `SAID` when it is asked where the sign is, on the photo."""
    engine = loading.load(base, device="cpu", dtype="fp32")
    teach(engine, [[Message.user("Where?", open_media(photo))]], [f"{SAID}<|im_end|>"])
    engine.save(tmp_path / "taught", dtype="fp32")
    return tmp_path / "taught"


def segue(*arguments, typed=None):
    return CliRunner().invoke(application(), list(map(str, arguments)), input=typed, catch_exceptions=False)


def test_chat_says_phrases_without_marks_and_draws_places_on_the_picture(taught, photo, tmp_path):
    run = segue("chat", photo, "--model", taught, "--dtype", "fp32", "--ask", "Where?", "-o", tmp_path / "out")
    assert (run.exit_code, run.stdout) == (0, "It is the sign.\n")
    rows = [line.split() for line in run.stderr.splitlines() if "sign" in line]
    assert rows == [["1", "the", "sign", "0", "0", "40", "60"], ["2", "the", "sign", "40", "30", "80", "60", "quad"]]
    folder = tmp_path / "out" / "answer-001"
    assert {path.name for path in folder.iterdir()} == {"overlay.png", "result.json"}
    drawn = read_image(open_media(folder / "overlay.png")) != 200
    assert drawn[:, 39].any(-1).mean() > 0.9 and not drawn[45:50, 60].any()
    first, second = json.loads((folder / "result.json").read_text())["regions"]
    assert first["quad"] is None and np.allclose(second["quad"][2], [80, 60])


def test_the_next_turn_is_told_what_was_generated_places_and_all(taught, photo):
    assert spoken(loading.load(taught, device="cpu", dtype="fp32").ask(photo, "Where?")) == SAID


def test_models_inspect_and_doctor_know_it(base, monkeypatch):
    assert "Qwen-VL-Chat-Int4" in zoo.released()
    monkeypatch.setattr(zoo, "released", lambda: ("Qwen-VL-Chat-Int4",))
    assert "Qwen-VL-Chat-Int4" in segue("models").stdout
    assert "tiny-qwen-vl" in segue("inspect", base).stdout
    assert segue("doctor", base).exit_code == 0


def test_masks_are_not_taught_to_a_model_that_has_none(base, tmp_path):
    folder = tmp_path / "data"
    for split, name in (("train", "train"), ("val", "validation")):
        segue("data", "synth", folder / split, "--count", 1, "--size", "96x96", "--split", name)
    run = segue("finetune", folder, "--base", base, "--output", tmp_path / "run")
    assert run.exit_code == 2 and "has no grounder, so that it cannot learn masks" in run.stderr


def test_an_adapter_of_the_originals_fused_layers_is_merged_without_loss(base, tmp_path):
    draws = torch.Generator().manual_seed(0)
    halves = {
        f"base_model.model.transformer.h.{layer}.{part}.lora_{half}.weight": torch.randn(shape, generator=draws)
        for layer in range(2)
        for part, width in {"attn.c_attn": 384, "attn.c_proj": 128, "mlp.w1": 192, "mlp.w2": 192}.items()
        for half, shape in (("A", (4, 128)), ("B", (width, 4)))
    }
    torch.save(halves, tmp_path / "adapter_model.bin")
    merged = tmp_path / "merged"
    words = ("--base", base, "--alpha", 2, "--dtype", "fp32")
    run = segue("convert", "import", tmp_path / "adapter_model.bin", merged, *words)
    assert run.exit_code == 0, run.stderr
    before, after = (
        loading.load(one, device="cpu", dtype="fp32").model.mllm.language_model.model.layers for one in (base, merged)
    )
    for layer in range(2):
        at = f"base_model.model.transformer.h.{layer}."
        fused = 0.5 * halves[f"{at}attn.c_attn.lora_B.weight"] @ halves[f"{at}attn.c_attn.lora_A.weight"]
        for part, moved in zip(("q_proj", "k_proj", "v_proj"), fused.chunk(3), strict=True):
            old, new = (getattr(layers[layer].self_attn, part).weight for layers in (before, after))
            assert torch.allclose(new, old + moved, atol=1e-5)
        gate = 0.5 * halves[f"{at}mlp.w2.lora_B.weight"] @ halves[f"{at}mlp.w2.lora_A.weight"]
        assert torch.allclose(after[layer].mlp.gate_proj.weight, before[layer].mlp.gate_proj.weight + gate, atol=1e-5)
        assert torch.equal(after[layer].mlp.down_proj.weight, before[layer].mlp.down_proj.weight)
