import pytest
import torch
from torch import nn

from segue.checkpoints import zoo
from segue.checkpoints.official import official_config
from segue.models.native_resolution.qwen3_vl import FAMILY, Qwen3MLLM, architecture, claims
from segue.models.protocol import Batch
from segue.weights.keys import compiled, match


@pytest.fixture(scope="module")
def tiny(randomise):
    """A tiny random Qwen3-VL whose first two tower layers feed the language model."""
    return randomise(Qwen3MLLM(zoo.config_of("tiny-qwen3-vl").mllm_config)).eval()


def test_the_released_sizes_are_read_from_an_official_config():
    config = architecture(official_config(zoo.config_of("Sa2VA-Qwen3-VL-4B"), {}))
    vision, text = config.vision_config, config.text_config
    assert (vision.depth, vision.hidden_size, vision.patch_size, vision.out_hidden_size) == (24, 1024, 16, 2560)
    assert list(vision.deepstack_visual_indexes) == [5, 11, 17] and vision.num_position_embeddings == 2304
    assert text.rope_parameters["mrope_section"] == [24, 20, 20] and text.rope_parameters["rope_theta"] == 5e6
    assert (text.head_dim, text.num_attention_heads) == (128, 32)
    assert config.largest_image() == (6272, 1568) and config.mean == config.deviation == (0.5, 0.5, 0.5)


def test_only_its_own_configs_are_claimed():
    assert [name for name in zoo.known() if claims(official_config(zoo.config_of(name), {}))] == [
        "Sa2VA-Qwen3-VL-2B",
        "Sa2VA-Qwen3-VL-4B",
        "tiny-qwen3-vl",
    ]


@torch.no_grad()
def test_parity_seg_state_before_norm_is_the_last_layers_own_output(tiny):
    ids = torch.arange(5)[None]
    raw = []
    hook = tiny.language_model.model.layers[-1].register_forward_hook(lambda _, __, output: raw.append(output))
    _, hidden = tiny.forward(Batch(ids, torch.ones_like(ids)))
    hook.remove()
    assert torch.equal(hidden, raw[0])
    assert isinstance(tiny.language_model.model.norm, nn.Identity)
    assert torch.equal(tiny.head(hidden), tiny.language_model.lm_head(tiny.language_model.norm(hidden)))
    assert not torch.allclose(tiny.head(hidden), tiny.language_model.lm_head(hidden), atol=0.1)


@torch.no_grad()
def test_a_feature_holds_what_each_layer_is_fed(tiny):
    pixels, grids = torch.randn(16, 1536), torch.tensor([[2, 4], [4, 2]])
    features = tiny.project(tiny.tower(pixels, grids))
    assert features.shape == (4, 3 * tiny.width)
    ids = torch.tensor([[1, 2, 2, 2, 2, 3]])
    batch = Batch(ids, torch.ones_like(ids), None, None, ids == 2, torch.arange(4), grids)
    assert torch.equal(tiny.prompt(batch.with_features(features)).embeddings[0, 1:5], features[:, : tiny.width])
    _, hidden = tiny.forward(batch.with_features(features))
    for part in range(3):
        other = features.clone()
        other[:, part * tiny.width : (part + 1) * tiny.width] = 0
        assert not torch.allclose(tiny.forward(batch.with_features(other))[1][0, -1], hidden[0, -1], atol=1e-4)


@pytest.mark.parametrize(
    ("upstream", "native"),
    [
        ("model.visual.deepstack_merger_list.1.norm.bias", "vision_tower.deepstack_merger_list.1.norm.bias"),
        ("model.visual.pos_embed.weight", "vision_tower.pos_embed.weight"),
        ("model.language_model.norm.weight", "language_model.norm.weight"),
        ("model.norm.weight", "language_model.norm.weight"),
        (
            "model.language_model.layers.2.self_attn.q_norm.weight",
            "language_model.model.layers.2.self_attn.q_norm.weight",
        ),
    ],
)
def test_official_names_go_to_their_places_and_the_final_norm_to_the_head(tiny, upstream, native):
    write = match(upstream, compiled(FAMILY.key_table(tiny.config)))
    assert write is not None and write.places == (native,)
    assert native in tiny.state_dict()
