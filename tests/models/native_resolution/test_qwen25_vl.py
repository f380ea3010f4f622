import pytest
import torch

from segue.checkpoints import zoo
from segue.checkpoints.official import official_config
from segue.models.native_resolution.qwen25_vl import FAMILY, Qwen25MLLM, architecture, claims
from segue.weights.keys import compiled, match


@pytest.fixture(scope="module")
def tiny():
    """A tiny Qwen2.5-VL with the library's own initial weights."""
    torch.manual_seed(0)
    return Qwen25MLLM(zoo.config_of("tiny-qwen25-vl").mllm_config).eval()


def test_the_released_sizes_are_read_from_an_official_config():
    config = architecture(official_config(zoo.config_of("Sa2VA-Qwen2_5-VL-3B"), {}))
    vision, text = config.vision_config, config.text_config
    assert (vision.depth, vision.hidden_size, vision.patch_size, vision.out_hidden_size) == (32, 1280, 14, 2048)
    assert list(vision.fullatt_block_indexes) == [7, 15, 23, 31]
    assert text.rope_parameters["mrope_section"] == [16, 24, 24] and text.rope_parameters["rope_theta"] == 1e6
    assert not config.tie_word_embeddings and not text.tie_word_embeddings
    assert config.largest_image() == (8192, 2048)


def test_pixels_are_normalised_as_clips():
    assert zoo.config_of("tiny-qwen25-vl").mllm_config.mean == (0.48145466, 0.4578275, 0.40821073)


def test_only_its_own_configs_are_claimed():
    assert [name for name in zoo.known() if claims(official_config(zoo.config_of(name), {}))] == [
        "Sa2VA-Qwen2_5-VL-3B",
        "Sa2VA-Qwen2_5-VL-7B",
        "tiny-qwen25-vl",
    ]


@torch.no_grad()
def test_a_segmentation_token_is_read_after_the_final_norm(tiny):
    assert tiny.language_model.model.norm.weight.shape == (128,)
    hidden = torch.randn(1, 2, 128)
    assert torch.equal(tiny.head(hidden), tiny.language_model.lm_head(hidden))


@pytest.mark.parametrize(
    ("upstream", "native"),
    [
        ("model.visual.blocks.0.attn.qkv.weight", "vision_tower.blocks.0.attn.qkv.weight"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("visual.merger.ln_q.weight", "vision_tower.merger.ln_q.weight"),
        ("model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("model.norm.weight", "language_model.model.norm.weight"),
    ],
)
def test_official_names_of_both_ages_go_to_one_place(tiny, upstream, native):
    write = match(upstream, compiled(FAMILY.key_table(tiny.config)))
    assert write is not None and write.places == (native,)
    assert native.replace(".3.", ".1.") in tiny.state_dict()
