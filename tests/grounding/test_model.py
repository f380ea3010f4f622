import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.checkpoints import model_folder
from segue.checkpoints.model_folder import claiming, load, read_layout
from segue.errors import CheckpointError, ConfigError
from segue.grounding import model as grounded
from segue.grounding.model import VisionLanguageConfig, VisionLanguageModel, build, expected
from segue.models.protocol import Batch


@pytest.fixture
def outputs():
    """What a model makes of fixed inputs: states and logits of text, visual features, and masks of a prompt."""

    @torch.no_grad()
    def compute(model):
        draws = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 200, (1, 9), generator=draws)
        pixels, frame = torch.randn(1, 3, 112, 112, generator=draws), torch.randn(1, 3, 256, 256, generator=draws)
        _, hidden = model.mllm.forward(Batch(ids, torch.ones_like(ids)))
        found = model.grounder.prompted(model.grounder.encode(frame), model.prompts(hidden[0, :2]))
        logits = model.mllm.language_model.lm_head(hidden)
        return [
            hidden,
            logits,
            model.mllm.project(model.mllm.tower(pixels)),
            found.logits,
            found.iou,
            found.presence,
            found.pointer,
        ]

    return compute


@pytest.fixture
def saved(engine_i, tmp_path):
    """A folder in our own layout, with two mask decoders."""
    engine_i.save(tmp_path / "model")
    return tmp_path / "model"


def all_equal(one, other):
    # weights that lie elsewhere in memory can take another path through the same kernel
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in zip(one, other, strict=True))


def test_a_saved_model_gives_equal_outputs_when_it_is_loaded(engine_i, saved, outputs):
    model, report = load(saved, dtype=torch.float32, device="cpu")
    assert all_equal(outputs(model), outputs(engine_i.model))
    assert (report.renamed, report.tied, report.fresh) == (0, (), ())
    assert report.total == len(engine_i.model.state_dict())
    assert not model.training


def test_transformers_reads_our_folders(engine_i, saved, outputs):
    model = VisionLanguageModel.from_pretrained(saved).eval()
    assert all_equal(outputs(model), outputs(engine_i.model))
    assert model.config.two_decoders


def test_our_loader_reads_what_transformers_writes(engine_i, tmp_path, outputs):
    engine_i.model.save_pretrained(tmp_path)
    model, _ = load(tmp_path, dtype=torch.float32, device="cpu")
    assert all_equal(outputs(model), outputs(engine_i.model))
    again = VisionLanguageModel.from_pretrained(tmp_path).eval()
    assert all_equal(outputs(again), outputs(engine_i.model))


def test_transformers_keeps_the_mask_decoders_in_float32(saved):
    model = VisionLanguageModel.from_pretrained(saved, dtype=torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    in_float32 = {name for name, kind in types.items() if kind == torch.float32}
    decoders = ("grounder.sam2.mask_decoder.", "grounder.language_decoder.")
    assert in_float32 == {name for name in types if name.startswith(decoders)}


def test_the_output_head_is_never_tied_to_the_embeddings(engine_i, saved):
    for model in (load(saved, dtype=torch.float32, device="cpu")[0], VisionLanguageModel.from_pretrained(saved)):
        language = model.mllm.language_model
        assert language.lm_head.weight is not language.model.embed_tokens.weight
        assert not torch.equal(language.lm_head.weight, language.model.embed_tokens.weight)
        assert torch.equal(language.lm_head.weight, engine_i.model.mllm.language_model.lm_head.weight)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_every_language_model_survives_saving_untied(tiny_config, randomise, tmp_path, outputs, kind):
    config = tiny_config(model_type=kind, tie_word_embeddings=False, head_dim=16)
    model = randomise(build(config, dtype=torch.float32, device="cpu", fill=True))
    model_folder.save(model, tmp_path / "model", also=lambda part: None)
    loaded, _ = load(tmp_path / "model", dtype=torch.float32, device="cpu")
    assert loaded.config.mllm_config.text_config.model_type == kind
    assert all_equal(outputs(loaded), outputs(model))
    head, table = loaded.mllm.language_model.lm_head.weight, loaded.mllm.get_input_embeddings().weight
    assert not torch.equal(head, table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_has_float32_mask_decoders_and_nothing_else(tiny_config, dtype):
    model = build(tiny_config(two_decoders=True), dtype=dtype, device="cpu", fill=True)
    types = {name: tensor.dtype for name, tensor in model.named_parameters()}
    decoders = ("grounder.sam2.mask_decoder.", "grounder.language_decoder.")
    assert {kind for name, kind in types.items() if name.startswith(decoders)} == {torch.float32}
    assert {kind for name, kind in types.items() if not name.startswith(decoders)} == {dtype}


def test_half_precision_leaves_the_rotary_tables_of_a_model_as_they_are_in_float32(tiny_config):
    whole, half = (
        build(tiny_config(), dtype=dtype, device="cpu", fill=True) for dtype in (torch.float32, torch.bfloat16)
    )
    tables = {name: tensor for name, tensor in whole.named_buffers() if name.endswith("inv_freq")}
    found = dict(half.named_buffers())
    assert len(tables) >= 2
    assert all(torch.equal(found[name], tensor) for name, tensor in tables.items())


def test_shards_of_mixed_types_load_into_the_type_asked_for(saved):
    state = load_file(saved / "model.safetensors")
    mixed = {name: t.to(torch.bfloat16) if name.startswith("mllm.vision_tower") else t for name, t in state.items()}
    save_file(mixed, saved / "model.safetensors", {"format": "pt"})
    model, _ = load(saved, dtype=torch.float32, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    name = "mllm.vision_tower.embeddings.cls_token"
    assert torch.equal(model.state_dict()[name], state[name].to(torch.bfloat16).float())


def test_building_and_loading_leave_the_default_type_alone(tiny_config, saved):
    assert torch.get_default_dtype() == torch.float32
    build(tiny_config(), dtype=torch.bfloat16, device="cpu", fill=True)
    load(saved, dtype=torch.float16, device="cpu")
    assert torch.get_default_dtype() == torch.float32
    assert torch.empty(1).device.type == "cpu"


def test_a_build_that_fails_leaves_the_default_type_alone(tiny_config):
    config = tiny_config()
    config.mllm_config.text_config.hidden_act = "no such function"
    with pytest.raises(KeyError):
        build(config, dtype=torch.bfloat16, device="cpu")
    assert torch.get_default_dtype() == torch.float32


def test_prompts_are_two_linear_layers_with_a_rectifier_between(engine):
    model, states = engine.model, torch.randn(3, 64)
    first, _, last = model.seg_projector
    expected_prompts = torch.relu(states @ first.weight.T + first.bias) @ last.weight.T + last.bias
    assert torch.allclose(model.prompts(states), expected_prompts, atol=1e-5)
    assert model.prompts(states[:0]).shape == (0, 32)


def test_tensors_are_expected_without_memory_for_any(tiny_config, engine_i):
    shapes = expected(tiny_config(two_decoders=True))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in engine_i.model.state_dict().items()}


def test_tensors_of_one_configuration_are_found_once_and_those_of_another_anew(tiny_config, monkeypatch):
    built = []
    grounded._expected.cache_clear()
    monkeypatch.setattr(grounded, "VisionLanguageModel", lambda config: built.append(1) or VisionLanguageModel(config))
    first = expected(tiny_config())
    first.clear()
    assert expected(tiny_config()) != {} and len(built) == 1
    assert expected(tiny_config(two_decoders=True)).keys() > expected(tiny_config()).keys() and len(built) == 2


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_a_folder_that_does_not_fit_is_refused_before_anything_is_built(saved, monkeypatch, change):
    state = load_file(saved / "model.safetensors")
    name = "seg_projector.0.bias"
    if change == "missing":
        del state[name]
    elif change == "extra":
        state["seg_projector.9.bias"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(7)
    save_file(state, saved / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(grounded, "build", lambda *a, **b: pytest.fail("a model was built"))
    with pytest.raises(CheckpointError, match=r"seg_projector\.[09]\.bias"):
        load(saved, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_never_opened(saved, name):
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(b"cposix\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load(saved, dtype=torch.float32, device="cpu")


def test_code_that_a_folder_brings_is_never_executed(engine_i, saved, outputs):
    for name in ("modeling_segue.py", "configuration_segue.py", "tokenization_segue.py", "__init__.py"):
        (saved / name).write_text("raise SystemExit('code of the folder was executed')\n")
    config = json.loads((saved / "config.json").read_text())
    classes = {"AutoConfig": "configuration_segue.Config", "AutoModel": "modeling_segue.Model"}
    config |= {"auto_map": classes, "architectures": ["Model"]}
    config["mllm_config"]["auto_map"] = classes
    (saved / "config.json").write_text(json.dumps(config))
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_segue.Tokenizer", None]}
    (saved / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "Tokenizer"}))
    from segue.loading import load as load_engine

    loaded = load_engine(saved, device="cpu", dtype="fp32")
    assert all_equal(outputs(loaded.model), outputs(engine_i.model))
    assert not [name for name in sys.modules if name.endswith(("modeling_segue", "tokenization_segue"))]


@pytest.fixture
def official(official_folder, tmp_path):
    """A copy of a folder in the official layout; its config.json and tensors may be changed on the way."""

    def copy(change=lambda state: state, **config):
        folder = shutil.copytree(official_folder, tmp_path / "official")
        (path,) = folder.glob("*.safetensors")
        save_file(change(load_file(path)), path, {"format": "pt"})
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | config))
        return folder

    return copy


def with_second_decoder(state):
    decoder = "grounding_encoder.sam2_model.sam_mask_decoder."
    second = {name: tensor.clone() + 1 for name, tensor in state.items() if name.startswith(decoder)}
    return state | {name.replace("decoder.", "decoder_modified.", 1): tensor for name, tensor in second.items()}


def without_head(state):
    return {name: tensor for name, tensor in state.items() if name != "language_model.lm_head.weight"}


def test_the_official_layout_is_read_through_its_key_table(official):
    folder = official(template="internlm2-chat")
    layout = read_layout(folder)
    assert layout.table
    assert (layout.config.family, layout.config.template, layout.config.two_decoders) == (
        "internvl",
        "internlm2-chat",
        False,
    )
    sizes = json.loads((folder / "sam2_config.json").read_text())
    assert layout.config.sam2_config.image_size == sizes["image_size"]
    model, report = load(folder, dtype=torch.float32, device="cpu")
    assert report.renamed > 0
    assert model.grounder.language_decoder is None


def test_a_second_mask_decoder_among_the_tensors_is_the_one_that_learned_language(official):
    model, _ = load(official(with_second_decoder), dtype=torch.float32, device="cpu")
    original, language = model.grounder.sam2.mask_decoder, model.grounder.language_decoder
    assert torch.equal(language.iou_token.weight, original.iou_token.weight + 1)
    assert torch.equal(language.conv_s0.weight, original.conv_s0.weight + 1)


def test_a_head_that_the_config_calls_tied_may_be_left_out(official):
    model, report = load(official(without_head, tie_word_embeddings=True), dtype=torch.float32, device="cpu")
    language = model.mllm.language_model
    assert torch.equal(language.lm_head.weight, language.model.embed_tokens.weight)
    assert report.tied == ("mllm.language_model.lm_head.weight",)


def test_a_head_that_is_missing_and_not_tied_is_refused(official):
    with pytest.raises(CheckpointError, match=r"missing: language_model\.lm_head\.weight"):
        load(official(without_head), dtype=torch.float32, device="cpu")


def test_a_head_that_is_there_is_loaded_whatever_the_config_says(official, official_folder):
    model, report = load(official(tie_word_embeddings=True), dtype=torch.float32, device="cpu")
    (path,) = official_folder.glob("*.safetensors")
    assert torch.equal(model.mllm.language_model.lm_head.weight, load_file(path)["language_model.lm_head.weight"])
    assert report.tied == ()


def test_a_folder_of_another_size_is_refused_and_both_architectures_are_named(official):
    fields = {"hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 128}
    with pytest.raises(CheckpointError, match=r"config\.json describes .* but the weights are "):
        load(official(vision_config=fields), dtype=torch.float32, device="cpu")


def test_our_own_layout_is_read_with_its_names_as_they_are(saved, engine_i):
    layout = read_layout(saved)
    assert (layout.table, dict(layout.tied)) == (None, {})
    assert layout.config.two_decoders
    assert layout.config.template == "qwen_chat"
    assert layout.config.mllm_config.tile_side == 112
    assert layout.config.sam2_config.image_size == 256


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": "llava"}, {"model_type": "qwen2", "hidden_size": 8}, {"architectures": ["Sa2VAChatModel"]}],
)
def test_a_config_that_no_family_claims_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no model family claims.*internvl"):
        read_layout(tmp_path)
    with pytest.raises(ConfigError, match="known families: "):
        claiming(config)


@pytest.mark.parametrize("text", [None, "", "[1]", "{"])
def test_a_folder_without_a_readable_config_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path, dtype=torch.float32, device="cpu")


def test_an_unknown_family_in_our_own_layout_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"family": "internvlx"}))
    with pytest.raises(ConfigError, match="unknown model family 'internvlx'; did you mean 'internvl'"):
        load(saved, dtype=torch.float32, device="cpu")


def test_a_configuration_survives_being_written(tiny_config, tmp_path):
    config = tiny_config(two_decoders=True, template="phi3_chat")
    config.save_pretrained(tmp_path)
    again = VisionLanguageConfig.from_pretrained(tmp_path)
    assert again.to_dict() == VisionLanguageConfig.from_dict(config.to_dict()).to_dict()
    assert (again.two_decoders, again.template, again.family) == (True, "phi3_chat", "internvl")
    assert again.get_text_config().hidden_size == 64


def test_a_folder_that_exists_half_is_never_left_behind(engine_i, tmp_path):
    def fail(part):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        model_folder.save(engine_i.model, tmp_path / "model", also=fail)
    assert list(tmp_path.iterdir()) == []
