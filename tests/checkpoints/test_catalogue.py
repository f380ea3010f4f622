"""Every released checkpoint, built without memory, against names and counts written down from the specification.

As a script it prints what `catalogue.json` holds: python tests/checkpoints/test_catalogue.py.
"""

import json
import math
import sys
from dataclasses import asdict

import pytest

from segue import weights
from segue.checkpoints import catalogue, footprint
from segue.checkpoints.model_folder import key_table
from segue.checkpoints.released import RELEASES
from segue.checkpoints.zoo import Sizes, config_of, find, released
from segue.grounding.model import expected

BOTH = ("weight", "bias")
# tensors of the official files, and numbers in them; the decoders of Sa2VA-i add 131 and 4,215,109
SPECIFIED = {
    "Sa2VA-1B": (1541, 1.164),
    "Sa2VA-4B": (1685, 3.942),
    "Sa2VA-8B": (1477, 8.318),
    "Sa2VA-26B": (1838, 25.778),
    "Sa2VA-InternVL3-2B": (1589, 2.316),
    "Sa2VA-InternVL3-8B": (1589, 8.183),
    "Sa2VA-InternVL3-14B": (1829, 15.369),
    "Sa2VA-Qwen2_5-VL-3B": (1729, 4.294),
    "Sa2VA-Qwen2_5-VL-7B": (1633, 8.528),
    "Sa2VA-Qwen3-VL-2B": (1530, 2.667),
    "Sa2VA-Qwen3-VL-4B": (1618, 5.057),
}


def ends(*stems, parts=BOTH):
    return [f"{stem}.{part}" for stem in stems for part in parts]


def layered(prefix, count, names):
    return {f"{prefix}{number}.{name}" for number in range(count) for name in names}


def tower_names(sizes, is_6b_style):
    if sizes.family == "internvl":
        norms = ends("norm1", "norm2", parts=("weight",) if is_6b_style else BOTH)
        fused = [
            "attn.qkv.weight",
            *(ends("attn.q_norm", "attn.k_norm", parts=("weight",)) if is_6b_style else []),
        ]
        fused += [] if is_6b_style else ["attn.qkv.bias"]
        names = [*fused, *norms, *ends("attn.proj", "mlp.fc1", "mlp.fc2"), "ls1", "ls2"]
        start = "vision_model.embeddings."
        single = {start + name for name in ("class_embedding", "position_embedding", *ends("patch_embedding"))}
        return (
            single
            | layered("vision_model.encoder.layers.", sizes.tower_layers, names)
            | set(ends("mlp1.0", "mlp1.1", "mlp1.3"))
        )
    visual = "model.model.visual."
    if sizes.family == "qwen25_vl":
        names = ends("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        names += ["norm1.weight", "norm2.weight"]
        single = ["patch_embed.proj.weight", "merger.ln_q.weight", *ends("merger.mlp.0", "merger.mlp.2")]
    else:
        names = ends("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2", "norm1", "norm2")
        merger = ends("norm", "linear_fc1", "linear_fc2")
        single = [*ends("patch_embed.proj"), "pos_embed.weight", *(f"merger.{name}" for name in merger)]
        single += [f"deepstack_merger_list.{number}.{name}" for number in range(3) for name in merger]
    return {visual + name for name in single} | layered(f"{visual}blocks.", sizes.tower_layers, names)


def language_names(sizes, is_fused):
    """`is_fused`: a Qwen-VL, whose text tower stands inside the same model."""
    if sizes.language == "InternLM2":
        names = [f"attention.{name}.weight" for name in ("wqkv", "wo")]
        names += [f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")]
        names += ["attention_norm.weight", "ffn_norm.weight"]
        single = {"language_model.model.tok_embeddings.weight", "language_model.output.weight"}
        return (
            single | {"language_model.model.norm.weight"} | layered("language_model.model.layers.", sizes.layers, names)
        )
    names = [f"self_attn.{part}_proj.weight" for part in "qkvo"] + [
        f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    ]
    names += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    names += [f"self_attn.{part}_proj.bias" for part in "qkv"] if sizes.language == "Qwen2" else []
    names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] if sizes.language == "Qwen3" else []
    start = "model.model.language_model." if is_fused else "language_model.model."
    head = "model.lm_head.weight" if is_fused else "language_model.lm_head.weight"
    return {head, f"{start}embed_tokens.weight", f"{start}norm.weight"} | layered(
        f"{start}layers.", sizes.layers, names
    )


def decoder_names(prefix):
    attention = [
        f"{name}.{part}"
        for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    layer = ends(*attention, *(f"norm{number}" for number in range(1, 5)), "mlp.layers.0", "mlp.layers.1")
    heads = [f"output_hypernetworks_mlps.{number}" for number in range(4)] + [
        "iou_prediction_head",
        "pred_obj_score_head",
    ]
    names = [f"transformer.layers.{number}.{name}" for number in range(2) for name in layer]
    names += ends(*(f"transformer.final_attn_token_to_image.{part}_proj" for part in ("q", "k", "v", "out")))
    names += ends(
        "transformer.norm_final_attn", "conv_s0", "conv_s1", *(f"output_upscaling.{number}" for number in (0, 1, 3))
    )
    names += ends("iou_token", "mask_tokens", "obj_score_token", parts=("weight",))
    names += ends(*(f"{head}.layers.{number}" for head in heads for number in range(3)))
    return {prefix + name for name in names}


def sam2_names(*, two_decoders):
    block = ends("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.layers.0", "mlp.layers.1")
    trunk = layered("image_encoder.trunk.blocks.", 48, block)
    trunk |= {f"image_encoder.trunk.{name}" for name in ("pos_embed", "pos_embed_window", *ends("patch_embed.proj"))}
    trunk |= set(ends(*(f"image_encoder.trunk.blocks.{number}.proj" for number in (2, 8, 44))))
    attention = [f"{name}.{part}_proj" for name in ("self_attn", "cross_attn_image") for part in ("q", "k", "v", "out")]
    memory = layered("memory_attention.layers.", 4, ends(*attention, "norm1", "norm2", "norm3", "linear1", "linear2"))
    encoder = ends(
        "pix_feat_proj", "out_proj", *(f"mask_downsampler.encoder.{number}" for number in (0, 1, 3, 4, 6, 7, 9, 10, 12))
    )
    fuser = [*ends("dwconv", "norm", "pwconv1", "pwconv2"), "g_weight"]
    encoder += [f"fuser.layers.{number}.{name}" for number in range(2) for name in fuser]
    prompts = [f"point_embeddings.{number}.weight" for number in range(4)] + [
        "not_a_point_embed.weight",
        "no_mask_embed.weight",
    ]
    prompts += [
        "pe_layer.positional_encoding_gaussian_matrix",
        *ends(*(f"mask_downscaling.{number}" for number in (0, 1, 3, 4, 6))),
    ]
    names = trunk | set(ends(*(f"image_encoder.neck.convs.{number}.conv" for number in range(4)))) | memory
    names |= set(
        ends("memory_attention.norm", "mask_downsample", *(f"obj_ptr_proj.layers.{number}" for number in range(3)))
    )
    names |= {f"memory_encoder.{name}" for name in encoder} | {f"sam_prompt_encoder.{name}" for name in prompts}
    names |= {"maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr"} | decoder_names("sam_mask_decoder.")
    names |= decoder_names("sam_mask_decoder_modified.") if two_decoders else set()
    return {f"grounding_encoder.sam2_model.{name}" for name in names}


def specified(config):
    """All names of an official checkpoint, from the specification alone."""
    sizes, is_6b_style = Sizes.of_config(config), getattr(config.mllm_config.vision_config, "use_qk_norm", False)
    joint = set(ends("text_hidden_fcs.0", "text_hidden_fcs.2")) | sam2_names(two_decoders=config.two_decoders)
    return joint | tower_names(sizes, is_6b_style) | language_names(sizes, sizes.family != "internvl")


@pytest.mark.parametrize("name", [name for name in released() if find(name)[1].sam2 is not None])
def test_the_official_files_have_the_names_and_the_count_of_numbers_of_the_specification(name):
    config = config_of(name)
    official = weights.upstream_shapes(expected(config), key_table(config))
    assert official.keys() == specified(config)
    (tensors, billions), is_i = SPECIFIED[name.replace("-i-", "-")], "-i-" in name
    numbers = sum(map(math.prod, official.values())) - 4_215_109 * is_i
    assert (len(official) - 131 * is_i, round(numbers / 1e9, 3)) == (tensors, billions)


@pytest.fixture(scope="module")
def recorded():
    return {one.name: one for one in catalogue.catalogue()}


@pytest.mark.parametrize("name", released())
def test_what_is_recorded_of_a_checkpoint_is_what_is_counted(name, recorded):
    assert tuple(recorded) == released()
    assert recorded[name] == catalogue.counted(name)


def test_an_exported_internvl3_8b_counts_to_the_last_number(recorded):
    buffer = 2 * 128  # saved, and no parameter
    found = recorded["Sa2VA-InternVL3-8B"]
    assert (found.parameters, found.tensors, found.policy) == (8_182_606_130 + buffer, 1589, "upstream")


def test_every_checkpoint_has_its_card():
    assert tuple(RELEASES) == released()
    assert all(
        release.base and all(math.isfinite(score) for score in release.scores.values()) for release in RELEASES.values()
    )


def test_weights_take_less_the_fewer_their_bits(recorded):
    found = recorded["Sa2VA-4B"].weights
    assert found["fp32"] > found["bf16"] == found["fp16"] > found["int8"] > found["int4"]


class TestFootprint:
    @pytest.fixture
    def internvl(self):
        return config_of("Sa2VA-InternVL3-2B")

    @pytest.mark.parametrize("bits", ["int8", "int4"])
    def test_sam2_projectors_and_tables_are_never_quantised(self, internvl, bits):
        layers = footprint.quantised_layers(expected(internvl), internvl.family, bits)
        starts = {name.split(".")[1] for name in layers}
        assert starts == {"vision_tower", "language_model"} and not any("embed" in name for name in layers)
        assert ("mllm.language_model.lm_head" in layers) is (bits == "int8")

    @pytest.mark.parametrize("name", ["Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen3-VL-2B"])
    def test_a_qwen_vls_merger_and_places_stay_exact(self, name):
        layers = footprint.quantised_layers(expected(config_of(name)), config_of(name).family, "int4")
        assert any("vision_tower.blocks.0.attn.qkv" in layer for layer in layers)
        assert not any("merger" in layer or "pos_embed" in layer for layer in layers)

    def test_more_to_do_needs_more(self, internvl):
        works = [footprint.SMALLEST, footprint.LARGEST_IMAGE]
        images = [footprint.working_memory(internvl, 2, work) for work in works]
        videos = [footprint.working_memory(internvl, 2, footprint.Work(frames=5, objects=count)) for count in (1, 16)]
        assert images[0] < images[1] and videos[0] < videos[1]

    def test_offloaded_layers_leave_the_gpu_but_for_two(self, internvl):
        places = expected(internvl)
        layers = sum(math.prod(shape) for name, shape in places.items() if "language_model.model.layers." in name)
        whole = footprint.placed_memory(places, 2, internvl.family)
        kept = footprint.placed_memory(places, 2, internvl.family, offload=True)
        assert whole == footprint.weight_memory(places, 2) and whole - kept == 2 * layers * 26 // 28


if __name__ == "__main__":
    figures = [
        {key: value for key, value in asdict(catalogue.counted(name)).items() if key != "release"}
        for name in released()
    ]
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
