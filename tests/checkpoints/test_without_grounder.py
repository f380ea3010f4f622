"""Models without a grounder: a tiny one of each family as it is published, and of a family that is added here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segue import loading, weights
from segue.checkpoints import convert, footprint, inspection, model_folder, zoo
from segue.checkpoints.random_weights import ANSWER_IN_WORDS, random_checkpoint
from segue.errors import CheckpointError, ConfigError
from segue.grounding.model import expected
from segue.media import open_media
from segue.models import FAMILIES
from segue.options import Options
from segue.types import Message

PLAIN = {
    "tiny": ("InternVLChatModel", "vision_model.", "<box>[[250,500,500,1000]]</box>"),
    "tiny-qwen-vl": ("QWenLMHeadModel", "transformer.visual.", "<ref>dog</ref><box>(250,500),(500,999)</box>"),
    "tiny-toy": ("ToyForCausalLM", "eye.", "<box>[[250,500,500,1000]]</box>"),
    "tiny-qwen25-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        "model.visual.",
        '{"bbox_2d": [200, 300, 400, 500], "label": "dog"}',
    ),
    "tiny-qwen3-vl": (
        "Qwen3VLForConditionalGeneration",
        "model.visual.",
        '{"bbox_2d": [250, 500, 500, 1000], "label": "dog"}',
    ),
}


@pytest.fixture(scope="module", autouse=True)
def toy():
    """A family that is added by its file and this one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        patch.setitem(FAMILIES._entries, "toy", "toy_family:FAMILY")
        yield


@pytest.fixture(scope="module", params=list(PLAIN))
def folder(request, toy, tmp_path_factory):
    name = request.param
    return random_checkpoint(tmp_path_factory.mktemp("plain") / name, name, grounder=False)


@pytest.fixture(scope="module")
def model(folder):
    return loading.load(folder, device="cpu", dtype="fp32")


@pytest.fixture
def image(picture):
    return open_media(picture(600, 800))


def test_its_official_folder_is_a_plain_models(folder):
    architecture, first, _ = PLAIN[folder.name]
    raw = weights.read_json(folder / "config.json")
    assert raw["architectures"] == [architecture] and raw["model_type"] != "sa2va_chat"
    names = weights.read_headers(folder)
    assert any(name.startswith(first) for name in names)
    assert not any(name.startswith(model_folder.GROUNDER_UPSTREAM) for name in names)


def test_it_loads_without_a_grounder_and_answers_in_words(folder, model, image):
    assert model.model.grounder is None and model.model.seg_projector is None
    assert model.model.config.sam2_config is None and model.processor.seg_id is None
    answer = model.ask(image, "What is this?")
    assert (answer.raw_text, answer.text, answer.regions) == (ANSWER_IN_WORDS, "Sure.", ())
    assert model.ask(None, "Who are you?").text == "Sure."
    (batched,) = model.answer_all([[Message.user("What is this?", image)]])
    assert batched.text == "Sure."


def test_letters_that_spell_a_segmentation_token_ask_for_nothing(model, image):
    answer = model.ask(image, "What is this?", options=Options(prefill="It is [SEG]."))
    assert answer.regions == ()


def test_boxes_in_words_come_out_in_pixels(folder, model, teach, image):
    said = f"It is here: {PLAIN[folder.name][2]}<|im_end|>"
    answer = model.ask(image, "Where is it?", options=Options(prefill=said))
    (box,) = answer.regions
    assert box.masks is None and (box.phrase == "dog") == ("dog" in said)
    if folder.name == "tiny-qwen25-vl":  # pixels of the image as it was shown
        rows, columns = model.processor.image(np.zeros((600, 800, 3), np.uint8), max_tiles=12).grids[0].tolist()
        wanted = np.array([200, 300, 400, 500]) * np.array([800 / columns, 600 / rows] * 2) / 14
    else:
        wanted = [200, 300, 400, 600]
    assert np.allclose(box.box, wanted, atol=0.7)
    assert model.ask(None, "Where is it?", options=Options(prefill=said)).regions == ()


def test_it_cannot_segment_and_says_so(folder, model, image):
    with pytest.raises(ConfigError, match=rf"{folder.name} has no grounder, so that it cannot segment; take a Sa2VA"):
        model.segment(image, ["the dog"])
    with pytest.raises(ConfigError, match="the model has no grounder"):
        loading.load(folder, device="cpu", sam2=folder)
    with pytest.raises(ConfigError, match="'consistent' needs"):
        model.ask(image, "Who?", options=Options(policy="consistent"))


def test_it_survives_being_saved_exported_and_imported(folder, model, image, tmp_path):
    model.save(tmp_path / "saved")
    assert weights.read_json(tmp_path / "saved" / "config.json")["sam2_config"] is None
    again = loading.load(tmp_path / "saved", device="cpu", dtype="fp32")
    assert again.model.grounder is None and again.ask(image, "What?").text == "Sure."
    convert.import_folder(folder, convert.Target(folder=tmp_path / "ours", dtype="fp32"))
    convert.export(tmp_path / "ours", convert.Target(folder=tmp_path / "official", dtype="fp32"))
    one, other = (load_file(at / "model.safetensors") for at in (folder, tmp_path / "official"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert loading.load(tmp_path / "official", device="cpu", dtype="fp32").ask(image, "What?").text == "Sure."


def test_it_is_inspected_and_sound(folder):
    report = inspection.report(folder)
    assert report.problems == () and report.policy is None
    assert report.found.startswith(FAMILIES[report.family].signs.tower)
    assert {part.name for part in report.components} == {
        *("vision tower", "projector", "language model", "embeddings and head")
    }
    checks = inspection.check_tokenizer(folder)
    assert not any(check.name == "[SEG]" or check.status == "problem" for check in checks)


def test_it_needs_no_more_memory_than_with_a_grounder(folder):
    plain = model_folder.read_layout(folder).config
    whole = zoo.config_of(folder.name)
    assert expected(plain).items() <= expected(whole).items()
    for work in (footprint.LARGEST_IMAGE, footprint.Work(frames=5, objects=16)):
        assert 0 < footprint.working_memory(plain, 4, work) <= footprint.working_memory(whole, 4, work)


@pytest.mark.parametrize("lacks", ["text_hidden_fcs.", "grounding_encoder.", "both"])
def test_half_a_grounder_is_refused_and_none_in_a_sa2va_too(official_folder, tmp_path, lacks):
    prefixes = model_folder.GROUNDER_UPSTREAM if lacks == "both" else lacks
    tensors = load_file(official_folder / "model.safetensors")
    for file in official_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
    save_file(kept, tmp_path / "model.safetensors")
    for architectures in (["Sa2VAChatModel"], ["InternVLChatModel"])[: 1 if lacks == "both" else 2]:
        raw = weights.read_json(tmp_path / "config.json") | {"architectures": architectures}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(CheckpointError, match="missing: "):
            loading.load(tmp_path, device="cpu")


def test_half_a_grounder_in_our_layout_is_refused(official_folder, tmp_path):
    convert.import_folder(official_folder, convert.Target(folder=tmp_path / "ours", dtype="fp32"))
    raw = weights.read_json(tmp_path / "ours" / "config.json")
    (tmp_path / "ours" / "config.json").write_text(json.dumps(raw | {"sam2_config": None}))
    with pytest.raises(CheckpointError, match="unexpected: grounder"):
        loading.load(tmp_path / "ours", device="cpu")


def test_a_grounder_whose_tokenizer_has_no_segmentation_token_is_refused(official_folder, tmp_path):
    for file in official_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "tokenizer.json").read_text().replace('"[SEG]"', '"[SEC]"')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"has no token '\[SEG\]', by which a model with a grounder"):
        loading.load(tmp_path, device="cpu")
