"""Names and layouts of official InternVL weights against the places they fill."""

from pathlib import Path

import pytest
import torch

from segue import weights
from segue.checkpoints import zoo
from segue.checkpoints.official import official_config
from segue.models.internvl import family
from segue.weights import Stored
from segue.weights.keys import compiled, match


def build(config):
    with torch.device("meta"):
        model = family.InternVLMLLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def small(kind="Qwen2", *, is_6b_style=False, groups=2):
    """An official config.json of a few numbers."""
    config = official_config(zoo.config_of("Sa2VA-26B" if is_6b_style else "tiny"), {})
    config["llm_config"].pop("head_dim", None)
    config["vision_config"] |= {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
    }
    config["vision_config"]["image_size"] = config["force_image_size"] = 28
    config["llm_config"] |= {"architectures": [f"{kind}ForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2}
    config["llm_config"] |= {
        "num_attention_heads": 8,
        "num_key_value_heads": groups,
        "intermediate_size": 48,
        "vocab_size": 60,
    }
    return family.architecture(config)


@pytest.mark.parametrize(
    ("name", "tower", "layers", "numbers"),
    [("Sa2VA-InternVL3-8B", 340, 339, 304_012_288), ("Sa2VA-26B", 589, 339, 5_536_496_000)],
)
def test_the_official_files_hold_as_many_tensors_and_parameters_as_the_released_ones(name, tower, layers, numbers):
    config = zoo.config_of(name).mllm_config
    shapes = weights.upstream_shapes(build(config), family.key_table(config))
    parts = {"vision_model.": tower, "language_model.": layers, "mlp1.": 6}
    assert {part: sum(key.startswith(part) for key in shapes) for part in parts} == parts
    assert sum(torch.Size(shape).numel() for key, shape in shapes.items() if key.startswith("vision_model.")) == numbers


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "InternLM2"])
@pytest.mark.parametrize("is_6b_style", [False, True])
def test_official_names_and_places_belong_together_one_to_one(kind, is_6b_style):
    config = small(kind, is_6b_style=is_6b_style)
    places, table = build(config), family.key_table(config)
    shapes = weights.upstream_shapes(places, table)
    headers = {name: Stored(Path("model.safetensors"), "F32", shape) for name, shape in shapes.items()}
    writes, report = weights.check(headers, places, table)
    assert report.total == len(shapes) and report.tied == report.fresh == ()
    assert sorted(place for write in writes for place in write.places) == sorted(places)
    assert ("vision_model.encoder.layers.1.attn.q_norm.weight" in shapes) is is_6b_style
    assert ("vision_model.encoder.layers.1.attn.qkv.bias" in shapes) is not is_6b_style
    assert ("vision_model.encoder.layers.1.norm1.bias" in shapes) is not is_6b_style


def test_the_fused_rows_of_the_tower_are_query_then_key_then_value():
    table = family.key_table(small())
    write = match("vision_model.encoder.layers.3.attn.qkv.weight", compiled(table))
    assert write.places == tuple(f"vision_tower.encoder.layer.3.attention.{part}_proj.weight" for part in "qkv")
    fused = torch.arange(9)[:, None].expand(9, 2)
    assert [piece[:, 0].tolist() for piece in write.cut(fused)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_the_fused_rows_of_internlm2_are_each_groups_queries_then_its_key_and_value(groups):
    config = small("InternLM2", groups=groups)
    write = match("language_model.model.layers.1.attention.wqkv.weight", compiled(family.key_table(config)))
    assert write.places == tuple(f"language_model.model.layers.1.self_attn.{part}_proj.weight" for part in "qkv")
    width, queries = 4, 8 // groups
    rows = [
        (group, part, line) for group in range(groups) for part in [*range(queries), "k", "v"] for line in range(width)
    ]
    fused = torch.arange(len(rows))[:, None].expand(-1, 32)
    query, key, value = ([rows[number] for number in piece[:, 0].tolist()] for piece in write.cut(fused))
    assert query == [row for row in rows if row[1] not in ("k", "v")]
    assert key == [row for row in rows if row[1] == "k"]
    assert value == [row for row in rows if row[1] == "v"]


@pytest.mark.parametrize("kind", ["Qwen2", "InternLM2"])
def test_upstream_tensors_come_back_as_they_were(kind):
    config = small(kind)
    table = family.key_table(config)
    draws = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=draws)
        for name, shape in weights.upstream_shapes(build(config), table).items()
    }
    state = {}
    for name, tensor in tensors.items():
        write = match(name, compiled(table))
        state |= dict(zip(write.places, write.cut(tensor), strict=True))
    back = weights.to_upstream(state, table, tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "name",
    [
        "vision_model.encoder.layers.0.attn.qkv.scale",
        "vision_model.encoder.norm.weight",
        "mlp1.2.weight",
        "lm_head.weight",
    ],
)
def test_a_name_that_no_released_checkpoint_has_goes_nowhere(name):
    config = small()
    write = match(name, compiled(family.key_table(config)))
    assert write is None or not set(write.places) & set(build(config))
