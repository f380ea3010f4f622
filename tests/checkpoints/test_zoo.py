from dataclasses import replace

import pytest

from segue import weights
from segue.checkpoints import zoo
from segue.checkpoints.model_folder import key_table
from segue.checkpoints.official import official_config
from segue.checkpoints.zoo import Sizes, config_of
from segue.errors import ConfigError
from segue.grounding.model import expected
from segue.models import FAMILIES


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
    return shapes


@pytest.mark.parametrize("name", zoo.known())
def test_an_official_config_is_claimed_by_one_family_and_has_the_sizes_of_its_architecture(name):
    config = config_of(name)
    official = official_config(config, {})
    assert [family for family in FAMILIES if FAMILIES[family].claims(official)] == [config.family]
    again = FAMILIES[config.family].architecture(official)
    assert again.to_dict() == config.mllm_config.to_dict()


@pytest.mark.parametrize("name", zoo.known())
def test_sizes_of_a_config_and_of_the_shapes_that_it_makes_agree(name):
    config = config_of(name)
    if getattr(config.mllm_config, "gptq_group", None):
        pytest.skip("shapes of what is packed in 4 bits do not tell sizes")
    places = expected(config)
    assert Sizes.of_shapes(places) == Sizes.of_config(config)
    assert Sizes.of_shapes(weights.upstream_shapes(places, key_table(config))) == Sizes.of_config(config)


def test_a_name_that_nobody_released_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="unknown architecture 'Sa2VA-9B'; known: Sa2VA-1B, Sa2VA-4B"):
        config_of("Sa2VA-9B")


@pytest.mark.parametrize("name", zoo.released())
def test_an_architecture_is_nearest_to_itself(name):
    sizes = Sizes.of_config(config_of(name))
    # the three Qwen-VL are of one size, and so are both LongVA
    first = next((first for first in ("Qwen-VL", "LongVA-7B") if name.startswith(first)), name)
    assert zoo.nearest(sizes) == first and zoo.is_exactly(sizes, name)


@pytest.mark.parametrize(
    ("headers", "sizes"),
    [
        (official_headers(), Sizes("internvl", 1024, 24, "Qwen2", 2048, 36, 11008, 151679, 144, False)),
        (
            official_headers(3200, "InternLM2", 6144, 48, 16384),
            Sizes("internvl", 3200, 24, "InternLM2", 6144, 48, 16384, 151679, 144, False),
        ),
        (
            official_headers(language="Qwen3"),
            Sizes("internvl", 1024, 24, "Qwen3", 2048, 36, 11008, 151679, 144, False),
        ),
        (
            (
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
            Sizes("internvl", 64, 2, "Qwen2", 128, 1, 192, 273, 16, True),
        ),
        (
            (
                {
                    "model.model.visual.patch_embed.proj.weight": (1024, 3, 2, 16, 16),
                    "model.model.visual.blocks.23.norm1.weight": (1024,),
                    "model.model.visual.merger.norm.weight": (1024,),
                    "model.model.language_model.embed_tokens.weight": (151674, 2560),
                    "model.model.language_model.layers.0.mlp.down_proj.weight": (2560, 9728),
                    "model.model.language_model.layers.35.self_attn.q_norm.weight": (128,),
                    "model.model.language_model.layers.0.self_attn.q_norm.weight": (128,),
                }
            ),
            Sizes("qwen3_vl", 1024, 24, "Qwen3", 2560, 36, 9728, 151674),
        ),
        (
            (
                {
                    "model.visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
                    "model.visual.merger.ln_q.weight": (1280,),
                    "model.model.embed_tokens.weight": (151670, 2048),
                    "model.model.layers.0.self_attn.q_proj.bias": (2048,),
                }
            ),
            Sizes("qwen25_vl", 1280, None, "Qwen2", 2048, 1, None, 151670),
        ),
        (({"model.layers.0.self_attn.q_proj.weight": (8, 8)}), Sizes()),
        (({"language_model.model.embed_tokens.weight": ()}), Sizes()),
        (({"language_model.model.layers." + "9" * 6000 + ".x": (1,)}), Sizes()),
        ({}, Sizes()),
    ],
)
def test_headers_betray_the_architecture_in_either_layout(headers, sizes):
    assert Sizes.of_shapes(headers) == sizes


def test_weights_of_another_size_are_told_with_both_names():
    config = config_of("Sa2VA-InternVL3-8B", grounder=False)
    text = zoo.contrast(config, official_headers(3200, "InternLM2", 6144, 48, 16384))
    assert "config.json describes Sa2VA-InternVL3-8B (InternViT 1024 wide, 24 deep; Qwen2 3584 wide, 28 deep)" in text
    assert "a model like Sa2VA-26B (InternViT 3200 wide, 24 deep; InternLM2 6144 wide, 48 deep; SAM 2 Hiera-L)" in text


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({}, False),
        ({"rows": 151674}, False),
        ({"layers": 35}, True),
        ({"mlp": 8960}, True),
    ],
)
def test_a_vocabulary_of_another_length_is_no_other_architecture(change, is_another):
    described = replace(Sizes.of_config(config_of("Sa2VA-4B")), **change)
    assert bool(zoo.differing(described, Sizes.of_shapes(official_headers()))) is is_another


def test_a_qwen_vl_is_told_from_an_internvl_of_the_same_widths():
    text = zoo.contrast(config_of("Sa2VA-Qwen2_5-VL-3B", grounder=False), official_headers())
    assert "config.json describes Sa2VA-Qwen2_5-VL-3B (Qwen2.5-VL tower 1280 wide, 32 deep; Qwen2 2048 wide" in text
    assert "the weights are those of Sa2VA-4B (InternViT 1024 wide, 24 deep; Qwen2 2048 wide" in text


def test_a_model_of_unknown_size_is_described_by_what_it_is_like():
    sizes = Sizes("internvl", 1024, 24, "Qwen2", 2048, 30, 11008)
    assert zoo.describe(sizes) == "a model like Sa2VA-4B (InternViT 1024 wide, 24 deep; Qwen2 2048 wide, 30 deep)"
    assert zoo.describe(Sizes()) == "no part of a known model"


def test_all_that_were_released_are_listed():
    assert len(zoo.released()) == 20
