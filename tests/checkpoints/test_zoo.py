from pathlib import Path

import pytest

from segue.checkpoints import zoo
from segue.checkpoints.zoo import RELEASED, ZOO, Sizes
from segue.errors import ConfigError
from segue.models import FAMILIES
from segue.weights import Stored

FAMILY_OF = {"InternViT": "internvl", "Qwen2.5-VL": "qwen25_vl", "Qwen3-VL": "qwen3_vl"}


def stored(shapes):
    return {name: Stored(Path("model.safetensors"), "F32", shape) for name, shape in shapes.items()}


def official_headers(tower=1024, language="Qwen2", width=2048, layers=36, mlp=11008):
    """The few tensors that tell an official checkpoint's architecture."""
    model = "language_model.model."
    table, down = (
        ("tok_embeddings", "feed_forward.w2") if language == "InternLM2" else ("embed_tokens", "mlp.down_proj")
    )
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, tower),
        "vision_model.encoder.layers.23.ls1": (tower,),
        f"{model}{table}.weight": (151679, width),
        f"{model}layers.0.{down}.weight": (width, mlp),
        f"{model}layers.{layers - 1}.whatever": (width,),
        "grounding_encoder.sam2_model.image_encoder.trunk.patch_embed.proj.weight": (144, 3, 7, 7),
    }
    if language == "Qwen2":
        shapes[f"{model}layers.0.self_attn.q_proj.bias"] = (width,)
    if language == "Qwen3":
        shapes[f"{model}layers.0.self_attn.q_norm.weight"] = (128,)
    return stored(shapes)


@pytest.mark.parametrize("name", ZOO)
def test_an_official_config_is_claimed_and_has_the_sizes_of_its_architecture(name):
    official, model = zoo.official_config(name), ZOO[name]
    assert [family for family in FAMILIES if FAMILIES[family].claims(official)] == [FAMILY_OF[model.tower.kind]]
    config = FAMILIES[FAMILY_OF[model.tower.kind]].architecture(official)
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (
        model.tower.width,
        model.tower.layers,
    )
    assert (config.text_config.hidden_size, config.text_config.vocab_size) == (
        model.language.width,
        model.language.rows,
    )
    assert getattr(config.vision_config, "use_qk_norm", False) is model.tower.is_6b_style
    assert not zoo.differing(Sizes.of_config(official), Sizes.of(model))


def test_a_name_that_nobody_released_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="unknown architecture 'Sa2VA-9B'; known: Sa2VA-1B, Sa2VA-4B"):
        zoo.official_config("Sa2VA-9B")


@pytest.mark.parametrize("name", RELEASED)
def test_an_architecture_is_nearest_to_itself(name):
    assert zoo.nearest(Sizes.of(ZOO[name])) == name


@pytest.mark.parametrize("name", [name for name in RELEASED if not ZOO[name].two_decoders])
def test_a_config_alone_tells_the_architecture(name):
    assert zoo.nearest(Sizes.of_config(zoo.official_config(name))) == name


@pytest.mark.parametrize(
    ("headers", "sizes"),
    [
        (official_headers(), Sizes(1024, 24, "Qwen2", 2048, 36, 11008, 151679, 144, False, "InternViT")),
        (
            official_headers(3200, "InternLM2", 6144, 48, 16384),
            Sizes(3200, 24, "InternLM2", 6144, 48, 16384, 151679, 144, False, "InternViT"),
        ),
        (
            official_headers(language="Qwen3"),
            Sizes(1024, 24, "Qwen3", 2048, 36, 11008, 151679, 144, False, "InternViT"),
        ),
        (
            stored(
                {
                    "mllm.vision_tower.embeddings.cls_token": (1, 1, 64),
                    "mllm.vision_tower.encoder.layer.1.lambda_1": (64,),
                    "mllm.language_model.model.embed_tokens.weight": (273, 128),
                    "mllm.language_model.model.layers.0.mlp.down_proj.weight": (128, 192),
                    "mllm.language_model.model.layers.0.self_attn.q_proj.bias": (128,),
                    "grounder.sam2.vision_encoder.backbone.patch_embed.projection.weight": (16, 3, 7, 7),
                    "grounder.language_decoder.iou_token.weight": (1, 32),
                }
            ),
            Sizes(64, 2, "Qwen2", 128, 1, 192, 273, 16, True, "InternViT"),
        ),
        (
            stored(
                {
                    "model.model.visual.patch_embed.proj.weight": (1024, 3, 2, 16, 16),
                    "model.model.visual.blocks.23.norm1.weight": (1024,),
                    "model.model.visual.deepstack_merger_list.0.norm.weight": (4096,),
                    "model.model.language_model.embed_tokens.weight": (151674, 2560),
                    "model.model.language_model.layers.0.mlp.down_proj.weight": (2560, 9728),
                    "model.model.language_model.layers.35.self_attn.q_norm.weight": (128,),
                    "model.model.language_model.layers.0.self_attn.q_norm.weight": (128,),
                }
            ),
            Sizes(1024, 24, "Qwen3", 2560, 36, 9728, 151674, vision="Qwen3-VL"),
        ),
        (
            stored(
                {
                    "model.visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
                    "model.visual.merger.ln_q.weight": (1280,),
                    "model.model.embed_tokens.weight": (151670, 2048),
                    "model.model.layers.0.self_attn.q_proj.bias": (2048,),
                }
            ),
            Sizes(1280, None, "Qwen2", 2048, 1, None, 151670, vision="Qwen2.5-VL"),
        ),
        (stored({"model.layers.0.self_attn.q_proj.weight": (8, 8)}), Sizes()),
        (stored({"language_model.model.embed_tokens.weight": ()}), Sizes()),
        (stored({"language_model.model.layers." + "9" * 6000 + ".x": (1,)}), Sizes()),
        ({}, Sizes()),
    ],
)
def test_headers_betray_the_architecture_in_either_layout(headers, sizes):
    assert Sizes.of_headers(headers) == sizes


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"llm_config": None, "vision_config": []},
        {"llm_config": {"architectures": 5, "hidden_size": "wide"}},
        {"llm_config": {"hidden_size": True}, "vision_config": {"hidden_size": 1.5}},
    ],
)
def test_a_config_of_nonsense_says_nothing(config):
    assert Sizes.of_config(config) == Sizes()
    assert zoo.nearest(Sizes.of_config(config)) is None


def test_our_own_config_says_as_much_as_the_official_one():
    own = {
        "mllm_config": {
            "vision_config": {"hidden_size": 1024},
            "text_config": {"model_type": "llama", "hidden_size": 4096},
        }
    }
    assert Sizes.of_config(own) == Sizes(tower=1024, language="InternLM2", width=4096)
    own["mllm_config"] |= {"model_type": "segue_internvl"}
    assert Sizes.of_config(own).vision == "InternViT"


def test_weights_of_another_size_are_told_with_both_names():
    config = zoo.official_config("Sa2VA-InternVL3-8B")
    text = zoo.contrast(config, official_headers(3200, "InternLM2", 6144, 48, 16384))
    assert "config.json describes Sa2VA-InternVL3-8B (InternViT 1024 wide, 24 deep; Qwen2 3584 wide, 28 deep)" in text
    assert "a model like Sa2VA-26B (InternViT 3200 wide, 24 deep; InternLM2 6144 wide, 48 deep; SAM 2 Hiera-L)" in text


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({}, False),
        ({"vocab_size": 151674}, False),
        ({"num_hidden_layers": 35}, True),
        ({"intermediate_size": 8960}, True),
    ],
)
def test_a_vocabulary_of_another_length_is_no_other_architecture(change, is_another):
    config = zoo.official_config("Sa2VA-4B")
    config["llm_config"] |= change
    assert bool(zoo.contrast(config, official_headers())) is is_another


def test_a_qwen_vl_is_told_from_an_internvl_of_the_same_widths():
    text = zoo.contrast(zoo.official_config("Sa2VA-Qwen2_5-VL-3B"), official_headers())
    assert "config.json describes Sa2VA-Qwen2_5-VL-3B (Qwen2.5-VL tower 1280 wide, 32 deep; Qwen2 2048 wide" in text
    assert "the weights are those of Sa2VA-4B (InternViT 1024 wide, 24 deep; Qwen2 2048 wide" in text


def test_a_model_of_unknown_size_is_described_by_what_it_is_like():
    sizes = Sizes(1024, 24, "Qwen2", 2048, 30, 11008, vision="InternViT")
    assert zoo.describe(sizes) == "a model like Sa2VA-4B (InternViT 1024 wide, 24 deep; Qwen2 2048 wide, 30 deep)"
    assert zoo.describe(Sizes()) == "no part of a known model"
