"""The engine and the folders that it loads from and saves to."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from segue.errors import CheckpointError, ConfigError
from segue.loading import load
from segue.media import open_media
from segue.options import Options

ONE = Options(prefill="It is [SEG].", keep_logits=True)
TWO = Options(prefill="It is [SEG] and [SEG].", keep_logits=True)


@pytest.fixture
def image(picture):
    return open_media(picture(60, 120))


def same(one, other):
    """Whether two answers say the same and point at the same pixels."""
    masks = [[region.masks.rles for region in answer.regions] for answer in (one, other)]
    return (one.text, one.raw_text, masks[0]) == (other.text, other.raw_text, masks[1])


def test_an_official_folder_is_loaded_and_answers(official_folder, image):
    loaded = load(official_folder, device="cpu", dtype="fp32")
    answer = loaded.ask(image, "Where?")
    assert (answer.text, len(answer.regions)) == ("Sure.", 1)
    lineage = answer.lineage
    assert lineage["model"] == str(official_folder)
    assert len(lineage["model_hash"]) == 16
    assert list(lineage["files"]) == [path.name for path in official_folder.glob("*.safetensors")]
    assert (lineage["dtype"], lineage["device"], lineage["family"]) == ("float32", "cpu", "internvl")
    assert set(lineage["versions"]) == {"segue", "torch", "transformers"}
    json.dumps(lineage)


def test_a_saved_model_answers_the_same(engine_i, clip, tmp_path):
    engine_i.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu", dtype="fp32")
    media = open_media(clip(4))
    assert same(engine_i.ask(media, "Where?", options=TWO), loaded.ask(media, "Where?", options=TWO))


def test_an_official_model_saved_in_our_layout_answers_the_same(official_folder, image, tmp_path):
    official = load(official_folder, device="cpu", dtype="fp32")
    official.save(tmp_path / "model")
    ours = load(tmp_path / "model", device="cpu", dtype="fp32")
    assert same(official.ask(image, "Where?"), ours.ask(image, "Where?"))
    written = json.loads((tmp_path / "model" / "lineage.json").read_text())
    assert official.lineage["model_hash"] in json.dumps(written)


def test_a_model_saved_in_bfloat16_is_the_rounded_one_at_half_the_size(engine, image, tmp_path):
    engine.save(tmp_path / "whole")
    engine.save(tmp_path / "half", dtype="bf16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load(tmp_path / "half", device="cpu", dtype="fp32")
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.to(torch.bfloat16).float())
    assert loaded.ask(image, "a", options=ONE).regions


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_runs_from_end_to_end(engine_i, image, clip, tmp_path, dtype):
    engine_i.save(tmp_path / "model")
    half = load(tmp_path / "model", device="cpu", dtype=dtype)
    assert half.model.grounder.sam2.mask_decoder.iou_token.weight.dtype == torch.float32
    for media in (image, open_media(clip(2))):
        answer = half.ask(media, "Where?", options=replace(TWO, frames="0", max_tiles=1))
        logits = answer.regions[0].masks.logits
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
    assert half.ask(None, "Where?", options=Options(max_new_tokens=2)).usage.answer_tokens == 2
    assert half.lineage["dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]


def test_generation_settings_that_a_folder_brings_are_ignored(official_folder, image, tmp_path):
    folder = shutil.copytree(official_folder, tmp_path / "model")
    settings = {
        "do_sample": True,
        "temperature": 9.0,
        "repetition_penalty": 3.0,
        "max_new_tokens": 1,
        "num_beams": 4,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    plain, changed = (load(path, device="cpu", dtype="fp32") for path in (official_folder, folder))
    assert same(plain.ask(image, "Where?"), changed.ask(image, "Where?"))


def test_loading_changes_no_setting_of_the_process(official_folder):
    def settings():
        device = torch.empty(0).device
        return (
            torch.get_default_dtype(),
            device,
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = settings()
    load(official_folder, device="cpu", dtype="bf16")
    assert settings() == before


def test_loading_does_not_move_the_global_random_state(official_folder):
    before = torch.get_rng_state()
    load(official_folder, device="cpu", dtype="fp32")
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_but_what_is_declared_is_needed(engine, image):
    engine.ask(image, "Where?", options=ONE)
    unwanted = {"torchvision", "flash_attn", "mmengine", "xtuner", "decord", "timm", "cv2"}
    assert unwanted.isdisjoint(sys.modules)


def test_a_folder_that_exists_is_not_written_over(engine, tmp_path):
    with pytest.raises(ConfigError, match="exists already"):
        engine.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_cannot_be_saved_in_a_type_that_is_none(engine, tmp_path):
    with pytest.raises(ConfigError, match="unknown dtype 'int4'"):
        engine.save(tmp_path / "model", dtype="int4")


def test_a_disk_that_fills_up_while_a_model_is_saved_is_told_and_leaves_nothing(engine, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("segue.weights.save_torch_state_dict", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*model: .*No space left.*; free space"):
        engine.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu9"}, "unknown device 'tpu9'"),
        ({"device": "cuda"}, "is not available"),
        ({"device": "mps"}, "is not available"),
        ({"device": "cpu", "dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_devices_and_types_that_are_not_there_are_refused(official_folder, options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        load(official_folder, **options)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/nowhere/at/all", "./nowhere", "../nowhere"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "..")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **b: pytest.fail("the hub was asked"))
    with pytest.raises(CheckpointError, match="there is no folder"):
        load(name)


def test_only_data_is_fetched_from_the_hub(official_folder, monkeypatch):
    asked = {}

    def fetch(repository, allow_patterns):
        asked.update(repository=repository, patterns=allow_patterns)
        return str(official_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load("ByteDance/Sa2VA-4B", device="cpu", dtype="fp32").lineage["model"] == "ByteDance/Sa2VA-4B"
    assert asked["repository"] == "ByteDance/Sa2VA-4B"
    assert not [pattern for pattern in asked["patterns"] if pattern.endswith((".py", ".bin", ".pt", ".pth", "*"))]


def test_a_hub_that_cannot_be_reached_is_a_checkpoint_error(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(CheckpointError, match="could not be fetched from the hub"):
        load("ByteDance/Sa2VA-4B")


def test_a_name_that_no_repository_can_have_is_a_checkpoint_error():
    with pytest.raises(CheckpointError, match="could not be fetched from the hub"):
        load("foo bar/baz")
