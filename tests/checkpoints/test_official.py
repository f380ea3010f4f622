import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segue import loading, weights
from segue.checkpoints import convert, random_weights, zoo
from segue.checkpoints.folders import open_folder
from segue.checkpoints.model_folder import key_table, read_layout
from segue.checkpoints.official import official_config
from segue.errors import CheckpointError, ConfigError
from segue.grounding import sam2
from segue.grounding.model import VisionLanguageConfig
from segue.media import open_media
from segue.models import FAMILIES
from segue.options import Options
from segue.weights import lazy

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
RECORDINGS = [
    *("sa2va_internvl_qwen2", "sa2va_internvl_internlm2", "sa2va_internvl_qwen3", "sa2va_i"),
    *("sa2va_qwen25vl", "sa2va_qwen3vl"),
]


def recording(name):
    if not (GOLDEN / name).is_dir():
        pytest.skip(f"no recording {name}")
    return GOLDEN / name


@pytest.fixture(scope="module")
def ours(official_folder, tmp_path_factory):
    """The official folder in our layout."""
    folder = tmp_path_factory.mktemp("ours") / "model"
    convert.import_folder(official_folder, convert.Target(folder=folder, dtype="fp32"))
    return folder


def test_official_to_ours_and_back_is_the_identity(official_folder, ours, target, tensors_of, same_tensors):
    convert.export(ours, target())
    assert same_tensors(tensors_of(target().folder), tensors_of(official_folder))


def test_a_model_gives_the_same_masks_in_either_layout(official_folder, ours, target, picture):
    convert.export(ours, target())
    answers = []
    for folder in (official_folder, ours, target().folder):
        answer = loading.load(folder, device="cpu", dtype="fp32").ask(open_media(picture()), "Where is it?")
        answers.append((answer.raw_text, [region.masks.rles for region in answer.regions]))
    assert answers[0] == answers[1] == answers[2] and answers[0][1]


SAID = Options(prefill="It is [SEG] and [SEG].", max_tiles=1, keep_logits=True)


def answer_of(folder, image):
    """How long a prompt is, and what is found of an image in float32, for a reply that is given."""
    answer = loading.load(folder, device="cpu", dtype="fp32").ask(open_media(image), "Where?", options=SAID)
    assert len(answer.regions) == 2
    return answer.usage.prompt_tokens, [region.masks.logits.tobytes() for region in answer.regions]


@pytest.mark.parametrize("name", ["tiny-qwen25-vl", "tiny-qwen3-vl"])
def test_a_qwen_vl_gives_the_same_masks_in_either_layout_and_keeps_its_chat_template(name, target, picture):
    source = random_weights.random_checkpoint(target("source").folder, name)
    turns = "{% for turn in messages %}<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    words = "{{ turn['content'][1]['text'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}"
    (source / "chat_template.jinja").write_text("<|im_start|>system\nBe brief.<|im_end|>\n" + turns + words)
    convert.import_folder(source, target("ours"))
    convert.export(target("ours").folder, target("official"))
    convert.import_folder(target("official").folder, target("back"))
    first = answer_of(source, picture())
    assert answer_of(target("official").folder, picture()) == answer_of(target("back").folder, picture()) == first
    (source / "chat_template.jinja").unlink()
    assert answer_of(source, picture())[0] < first[0]  # the template counts


def test_a_qwen_vl_goes_out_with_what_the_originals_processor_reads(target):
    folder = random_weights.random_checkpoint(target("source").folder, "tiny-qwen3-vl")
    convert.export(folder, target())
    files = {name: weights.read_json(target().folder / f"{name}.json") for name in ("config", "preprocessor_config")}
    ids = weights.read_json(target().folder / "tokenizer.json")["added_tokens"]
    by_word = {token["content"]: token["id"] for token in ids}
    assert files["config"]["image_token_id"] == by_word["<|image_pad|>"]
    assert files["config"]["vision_start_token_id"] == by_word["<|vision_start|>"]
    assert files["config"]["auto_map"]["AutoModel"] == "modeling_sa2va_qwen.Sa2VAChatModelQwen"
    assert files["preprocessor_config"]["patch_size"] == 16 and files["preprocessor_config"]["image_mean"] == [0.5] * 3
    video = weights.read_json(target().folder / "video_preprocessor_config.json")
    assert video["video_processor_type"] == "Qwen3VLVideoProcessor"
    assert weights.read_json(target().folder / "tokenizer_config.json")["tokenizer_class"] == "Qwen2Tokenizer"


def test_a_saved_model_of_the_engine_goes_out_and_comes_in_again(engine_i, target, tensors_of, same_tensors):
    saved = target("saved").folder
    engine_i.save(saved)
    convert.export(saved, target("official"))
    names = tensors_of(target("official").folder)
    assert any(name.startswith("grounding_encoder.sam2_model.sam_mask_decoder_modified.") for name in names)
    assert any(name.endswith("fuser.layers.0.g_weight") for name in names) and not any(
        "gamma" in name for name in names
    )
    convert.import_folder(target("official").folder, target("back"))
    assert same_tensors(tensors_of(target("back").folder), tensors_of(saved))


def test_names_of_training_for_the_memory_are_read_as_well(
    official_folder, ours, tmp_path, target, tensors_of, same_tensors
):
    folder = tmp_path / "gamma"
    folder.mkdir()
    for file in official_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import save_file

    save_file(
        {name.replace("g_weight", "gamma"): t for name, t in tensors_of(folder).items()}, folder / "model.safetensors"
    )
    convert.import_folder(folder, target())
    assert same_tensors(tensors_of(target().folder), tensors_of(ours))


@pytest.mark.parity
@pytest.mark.parametrize("name", RECORDINGS)
def test_an_export_has_the_names_and_shapes_that_the_original_code_saved_and_comes_in_again(
    name, target, tensors_of, same_tensors
):
    source = recording(name)
    convert.import_folder(source, target("ours"))
    convert.export(target("ours").folder, target("official"))
    written = weights.read_headers(target("official").folder)
    recorded = json.loads((source / "manifest.json").read_text())["weights"]
    assert {key: list(stored.shape) for key, stored in written.items()} == recorded
    original, again = (
        load_file(source / "weights.safetensors"),
        load_file(target("official").folder / "model.safetensors"),
    )
    assert all(torch.equal(again[key], tensor) for key, tensor in original.items())
    convert.import_folder(target("official").folder, target("back"))
    ours, back = target("ours").folder, target("back").folder
    assert same_tensors(tensors_of(back), tensors_of(ours))
    assert weights.read_json(back / "config.json") == weights.read_json(ours / "config.json")


@pytest.mark.parity
@pytest.mark.parametrize("name", RECORDINGS)
def test_an_exported_config_says_what_the_original_one_says(name):
    folder = recording(name)
    opened, recorded = open_folder(folder), json.loads((folder / "config.json").read_text())
    written = official_config(opened.config, opened.tokenizer().get_vocab())
    assert flat(recorded).items() - flat(written).items() - {("torch_dtype", "float32")} <= {
        # the library forgets the window that a model does not use
        ("llm_config.sliding_window", 32768),
        ("text_config.sliding_window", 32768),
        ("llm_config.pad_token_id", 2),
    }
    assert (
        sam2.sizes(opened.config.sam2_config).items() <= json.loads((folder / "sam2_config.json").read_text()).items()
    )


def flat(value, prefix=""):
    """A nested object as one of dotted names, lists as text."""
    if not isinstance(value, dict):
        return {prefix[:-1]: str(value) if isinstance(value, list) else value}
    return {name: found for key, part in value.items() for name, found in flat(part, f"{prefix}{key}.").items()}


@pytest.mark.parametrize("name", zoo.known())
def test_a_config_read_back_is_the_same_for_every_known_architecture(name):
    config = zoo.config_of(name)
    family = FAMILIES[config.family]
    again = family.architecture(family.official.config(config.mllm_config))
    assert again.to_dict() == config.mllm_config.to_dict()
    if config.sam2_config is not None:
        assert sam2.architecture(sam2.sizes(config.sam2_config)).to_dict() == config.sam2_config.to_dict()


def test_an_export_names_the_originals_classes_and_brings_none(ours, target):
    convert.export(ours, target())
    config = weights.read_json(target().folder / "config.json")
    assert config["architectures"] == ["Sa2VAChatModel"] and config["model_type"] == "sa2va_chat"
    assert config["auto_map"]["AutoModel"] == "modeling_sa2va_chat.Sa2VAChatModel"
    assert config["torch_dtype"] == "float32" and config["template"] == "qwen_chat"
    assert not list(target().folder.glob("*.py"))
    assert weights.read_json(target().folder / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_sizes_of_sam2_are_written_only_where_they_are_not_the_usual_ones(ours, target, monkeypatch):
    convert.export(ours, target("tiny"))
    assert weights.read_json(target("tiny").folder / "sam2_config.json")["embed_dim"] == 16
    monkeypatch.setattr(sam2, "HIERA_L", sam2.sizes(read_layout(ours).config.sam2_config))
    convert.export(ours, target("usual"))
    assert not (target("usual").folder / "sam2_config.json").exists()


def test_a_family_without_an_official_layout_says_so(ours, target, monkeypatch):
    from dataclasses import replace

    family = FAMILIES["internvl"]
    monkeypatch.setattr("segue.checkpoints.model_folder.FAMILIES", {"internvl": replace(family, grounded=None)})
    with pytest.raises(ConfigError, match="internvl with a grounder cannot be written in an official layout"):
        convert.export(ours, target())


def test_half_precision_is_the_default_and_leaves_mask_decoders_alone(official_folder, target, tensors_of):
    assert convert.Target(folder=Path()).dtype == "bf16"
    convert.import_folder(official_folder, target("bf16", dtype="bf16"))
    convert.export(target("bf16").folder, target("fp16", dtype="fp16"))
    for folder, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for name, tensor in tensors_of(target(folder).folder).items():
            assert tensor.dtype == (torch.float32 if "mask_decoder." in name else dtype), name


def test_a_lineage_tells_the_whole_way(official_folder, ours, target):
    convert.export(ours, target())
    step = weights.read_json(target().folder / "lineage.json")["made_from"]
    assert (step["command"], step["source"]["name"], step["dtype"]) == ("export", "model", "fp32")
    assert step["source"]["model_hash"] == weights.read_json(ours / "lineage.json")["model_hash"]
    first = step["source"]["made_from"]
    digest = weights.file_hash(official_folder / "model.safetensors")
    assert first["command"] == "import" and first["source"]["files"] == {"model.safetensors": digest}
    assert first["source"]["made_from"]["random"] is True


def test_a_tensor_too_many_is_refused_before_anything_is_written(ours, target, tmp_path, tensors_of):
    from safetensors.torch import save_file

    folder = tmp_path / "stray"
    folder.mkdir()
    for file in ours.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file({**tensors_of(folder), "stray": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected: stray \[2\]"):
        convert.export(folder, target())
    assert not target().folder.exists()


def test_large_shapes_come_without_memory():
    config: VisionLanguageConfig = zoo.config_of("Sa2VA-26B")
    shapes = random_weights.official_shapes(config)
    specs = {name: lazy.Spec(shape, torch.bfloat16) for name, shape in shapes.items()}
    assert lazy.Tensors(specs, specs.__getitem__).nbytes > 50e9
    assert key_table(config)


def test_the_tiles_and_frames_of_training_go_out_and_come_in_again(ours, target):
    source = target("source").folder
    shutil.copytree(ours, source)
    raw = weights.read_json(source / "config.json")
    raw["mllm_config"]["most_tiles"], raw["video_frames"] = 1, "uniform:3"
    (source / "config.json").write_text(json.dumps(raw))
    convert.export(source, target("official"))
    config = read_layout(target("official").folder).config
    assert (config.mllm_config.most_tiles, config.video_frames) == (1, "uniform:3")
    assert "most_tiles" not in official_config(open_folder(ours).config, {})
