"""Qwen-VL's tower, resampler and language model, and how an official folder fills them."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from segue import weights
from segue.errors import CheckpointError, ConfigError, DataError
from segue.models import gptq
from segue.models.decoding import Decoding, decode
from segue.models.prefill import LastPrompt, read_prompt
from segue.models.protocol import Batch
from segue.models.qwen_vl.language import log_factors, stretch_level, stretched
from segue.models.qwen_vl.model import QwenVLMLLM, architecture, claims, key_table
from segue.models.qwen_vl.processor import image_slots, normalised
from segue.models.qwen_vl.vision import grid_positions, spread_positions

START, SLOTS = 290, 16
OFFICIAL = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": 128,
    "intermediate_size": 192,
    "kv_channels": 32,
    "layer_norm_epsilon": 1e-6,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "seq_length": 24,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 300,
    "visual": {
        "heads": 2,
        "image_size": 112,
        "image_start_id": START,
        "layers": 2,
        "mlp_ratio": 4.9231,
        "n_queries": SLOTS,
        "output_dim": 128,
        "patch_size": 14,
        "width": 32,
    },
}
REAL = OFFICIAL | {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "seq_length": 2048,
    "vocab_size": 151936,
    "visual": {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151857,
        "layers": 48,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    },
}


@pytest.fixture(scope="module")
def mllm(randomise):
    return randomise(QwenVLMLLM(architecture(OFFICIAL))).eval().requires_grad_(False)


def shown(text=(5, 6, 7), pictures=1, pad=START + 2):
    """A row that shows pictures, then says something."""
    row = [token for _ in range(pictures) for token in (START, *[pad] * SLOTS, START + 1)]
    return torch.tensor([[*row, *text]])


def batch_of(ids):
    slots = image_slots(ids, START, SLOTS)
    return Batch(ids, torch.ones_like(ids), visual_places=slots, visual_rows=torch.arange(int(slots.sum())))


def official_tensors(mllm):
    """A model's tensors under their official names."""
    table, state = key_table(mllm.config), mllm.state_dict()
    names = weights.upstream_shapes({name: tuple(value.shape) for name, value in state.items()}, table)
    return {name: value.contiguous() for name, value in weights.to_upstream(state, table, names).items()}


def test_the_real_model_has_the_published_number_of_parameters():
    config = architecture(REAL)
    with torch.device("meta"):
        state = QwenVLMLLM(config).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    count = lambda *starts: sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(starts))  # noqa: E731
    assert count("language_model.") == 7_721_324_544
    assert count("vision_tower.") == 1_842_770_688
    assert count("connector.resampler.") == 76_054_528
    assert count("connector.norm.", "connector.output.") == 16_785_408
    assert count("") == 9_656_935_168
    assert len(weights.upstream_shapes(shapes, key_table(config))) == 853


def test_an_int4_folder_of_the_real_model_has_the_published_size():
    config = architecture(REAL | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}})
    with torch.device("meta"):
        state = QwenVLMLLM(config).state_dict()
    names = weights.upstream_shapes({name: tuple(value.shape) for name, value in state.items()}, key_table(config))
    size = sum(
        math.prod(shape) * (4 if name.endswith(("qweight", "qzeros", "g_idx")) else 2) for name, shape in names.items()
    )
    assert len(names) == 1461
    assert size == 9_731_786_240


def test_an_official_folder_is_read_as_it_is_and_written_alike(mllm, randomise, tmp_path):
    tensors = official_tensors(mllm)
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (384, 128)
    save_file(tensors, tmp_path / "model.safetensors")
    other = randomise(QwenVLMLLM(mllm.config), seed=1)
    report = weights.load(other, tmp_path, key_table(mllm.config))
    assert report.total == len(tensors)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in mllm.state_dict().items())


@pytest.mark.parametrize("lost", ["transformer.ln_f.weight", "transformer.visual.proj"])
def test_a_folder_that_lacks_a_tensor_is_refused(mllm, tmp_path, lost):
    tensors = official_tensors(mllm)
    shape = list(tensors.pop(lost).shape)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"missing: {lost} \[{shape[0]}"):
        weights.load(QwenVLMLLM(mllm.config), tmp_path, key_table(mllm.config))


def test_the_gate_is_the_second_branch_and_queries_stand_first(mllm):
    tensors, layer = official_tensors(mllm), mllm.language_model.model.layers[1]
    assert torch.equal(tensors["transformer.h.1.mlp.w2.weight"], layer.mlp.gate_proj.weight)
    assert torch.equal(tensors["transformer.h.1.mlp.w1.weight"], layer.mlp.up_proj.weight)
    assert torch.equal(tensors["transformer.h.1.attn.c_attn.bias"][:128], layer.self_attn.q_proj.bias)


def test_the_towers_rows_stand_head_by_head(mllm):
    fused = official_tensors(mllm)["transformer.visual.transformer.resblocks.0.attn.in_proj.weight"]
    attention = mllm.vision_tower.layers[0].attention
    # two heads of 16: queries, keys and values of the first, then of the second
    assert torch.equal(fused[48:64], attention.q_proj.weight[16:])
    assert torch.equal(fused[16:32], attention.k_proj.weight[:16])


def test_without_another_width_the_resampler_projects_nothing():
    same = OFFICIAL | {"visual": OFFICIAL["visual"] | {"width": 128}}
    model = QwenVLMLLM(architecture(same))
    assert not any("project." in name for name in model.state_dict())
    assert model.project(model.tower(torch.zeros(2, 3, 112, 112))).shape == (2 * SLOTS, 128)


def test_a_resampler_narrower_than_a_head_is_refused():
    with pytest.raises(ConfigError, match="96"):
        QwenVLMLLM(architecture(OFFICIAL | {"visual": OFFICIAL["visual"] | {"output_dim": 96}}))


@pytest.mark.parametrize("count", [64, 1024])
def test_bicubic_positions_are_not_antialiased(count):
    table, side = torch.randn(256, 8), math.isqrt(count)
    ours = spread_positions(table, count)
    grid = table.view(1, 16, 16, 8).permute(0, 3, 1, 2)
    plain, smooth = (
        functional.interpolate(grid, (side, side), mode="bicubic", antialias=smoothed)[0].flatten(1).T
        for smoothed in (False, True)
    )
    assert torch.allclose(ours, plain) and not torch.allclose(ours, smooth, atol=1e-2)
    assert spread_positions(table, 256) is table
    assert spread_positions(table.bfloat16(), count).dtype == torch.bfloat16


def test_positions_of_no_square_are_refused():
    with pytest.raises(ConfigError, match="square"):
        spread_positions(torch.zeros(256, 4), 60)


def test_a_new_resampler_counts_columns_in_its_first_half():
    codes = grid_positions(4, 16)
    for place, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]):
        steps = [10000.0 ** (-k / 4) for k in range(4)]
        wanted = [wave(at * step) for at in (column, row) for wave in (math.sin, math.cos) for step in steps]
        assert codes[place].tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_resamplers_positions_never_learn(mllm):
    assert "connector.resampler.positions" in mllm.state_dict()
    assert not any(name.endswith("resampler.positions") for name, _ in mllm.named_parameters())


def test_queries_and_keys_have_positions_and_values_have_none(mllm):
    resampler = mllm.connector.resampler
    states = torch.randn(1, 64, 32)
    values = resampler.key_norm(resampler.project(states))
    keys = values + spread_positions(resampler.positions, 64)
    queries = (resampler.query_norm(resampler.query) + resampler.positions)[None]
    split = [
        project(part).view(1, -1, 1, 128).transpose(1, 2)
        for project, part in (
            (resampler.attention.q_proj, queries),
            (resampler.attention.k_proj, keys),
            (resampler.attention.v_proj, values),
        )
    ]
    scores = (split[0] @ split[1].transpose(2, 3) / math.sqrt(128)).softmax(-1) @ split[2]
    wanted = resampler.attention.out_proj(scores.transpose(1, 2).flatten(2))
    assert torch.allclose(resampler(states), wanted, atol=1e-5)


def test_short_texts_are_plain_qwen2(mllm, randomise):
    sizes = mllm.config.text_config.to_dict()
    library = Qwen2ForCausalLM(
        Qwen2Config(**{key: value for key, value in sizes.items() if key != "model_type"})
    ).eval()
    library.load_state_dict(mllm.language_model.state_dict())
    ids = torch.randint(0, 290, (2, 24))
    ones = torch.ones_like(ids)
    _, hidden = mllm(Batch(ids, ones))
    assert torch.allclose(mllm.head(hidden), library(ids, attention_mask=ones).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "factor", "base"),
    [
        (1, 1, 10000),
        (2048, 1, 10000),
        (2049, 3, 30527.74),
        (4096, 3, 30527.74),
        (4097, 7, 72195.86),
        (8193, 15, 156588.32),
    ],
)
def test_ntk_at_prefill_follows_the_table(length, factor, base):
    level = stretch_level(length, 2048)
    assert 2 ** (level + 1) - 1 == factor
    assert 10000 * factor ** (128 / 126) == pytest.approx(base, rel=1e-6)


def test_ntk_at_prefill_is_kept_while_decoding_and_is_each_rows_own(mllm):
    """A long and a short row side by side, decoded beyond the trained length: as each alone."""
    draws = torch.Generator().manual_seed(0)
    long, short = (torch.randint(0, 290, (1, length), generator=draws) for length in (40, 20))
    decoding = Decoding(is_over=lambda _: False, seg_id=None, max_new_tokens=12)
    alone = [decode(mllm, Batch(row, torch.ones_like(row)), decoding)[0].ids for row in (long, short)]
    ids = torch.cat([long, functional.pad(short, (20, 0))])
    attention = torch.cat([torch.ones_like(long), functional.pad(torch.ones_like(short), (20, 0))])
    together = decode(mllm, Batch(ids, attention), decoding)
    assert [row.ids for row in together] == alone


def test_a_stretched_position_moves_on_and_keeps_its_stretch():
    positions = torch.arange(60)[None]
    marked = stretched(positions, 24)
    assert torch.equal(stretched(positions[:, :24], 24), positions[:, :24])
    assert (marked[0, -1] + 1) % (1 << 20) == 60 and (marked[0, -1] + 1) >> 20 == stretch_level(60, 24) == 2


def test_queries_grow_with_the_logarithm_of_their_place():
    factors = log_factors(torch.tensor([[0, 2047, 2048, 4095, 8191]]), 2048)[0].tolist()
    assert factors == pytest.approx([1, 1, math.log(2049) / math.log(2048), 1.0909, 1.1818], abs=1e-4)


def test_in_training_nothing_is_stretched(mllm):
    ids = torch.randint(0, 290, (1, 60))
    batch = Batch(ids, torch.ones_like(ids))
    _, judged = mllm(batch)
    mllm.train()
    _, learned = mllm(batch)
    mllm.eval()
    text = mllm.config.text_config
    text.use_dynamic_ntk = text.use_logn_attn = False
    _, plain = mllm(batch)
    text.use_dynamic_ntk = text.use_logn_attn = True
    assert torch.allclose(learned, plain, atol=1e-5) and not torch.allclose(judged, plain, atol=1e-2)


def test_a_prompt_read_in_pieces_is_the_same(mllm):
    ids = torch.randint(0, 290, (1, 40))
    whole = mllm.language_model(ids, position_ids=torch.arange(40)[None]).logits[:, -1]
    cache = DynamicCache()
    for start in range(0, 40, 7):
        stop = min(start + 7, 40)
        where = torch.arange(start, stop)[None]
        part = mllm.language_model(ids[:, start:stop], position_ids=where, past_key_values=cache, use_cache=True)
    assert torch.allclose(part.logits[:, -1], whole, atol=1e-5)


def test_a_prompt_that_is_stretched_further_does_not_go_on_from_a_shorter_one(mllm):
    ids = torch.randint(0, 290, (1, 120))
    last = LastPrompt()
    for length, expected in ((70, 0), (74, 70), (120, 0)):
        prompt = mllm.prompt(Batch(ids[:, :length], torch.ones(1, length, dtype=torch.long)))
        ((_, _, hidden, known),) = last.read(mllm.language_model, [(prompt, ids[0, :length])])
        assert known == expected
        assert torch.allclose(hidden, read_prompt(mllm.language_model, prompt, DynamicCache()), atol=1e-5)


def test_what_holds_a_pictures_place_does_not_matter(mllm):
    features = mllm.project(mllm.tower(torch.randn(2, 3, 112, 112)))
    pads, names = (mllm(batch_of(shown(pictures=2, pad=pad)).with_features(features))[1] for pad in (START + 2, 97))
    assert torch.equal(pads, names)


def test_pictures_are_written_in_reading_order_over_rows(mllm):
    pixels = torch.randn(3, 3, 112, 112)
    features = mllm.project(mllm.tower(pixels))
    ids = torch.cat([shown(pictures=2), functional.pad(shown(), (18, 0))])
    embedded = mllm.prompt(batch_of(ids).with_features(features)).embeddings
    assert torch.equal(embedded[image_slots(ids, START, SLOTS)], features)


@pytest.mark.parametrize(
    "row",
    [
        [START],
        [START + 1],
        [START, 5, START + 1],
        [START + 1, *[5] * SLOTS, START],
        [START, START, *[5] * SLOTS, START + 1],
    ],
)
def test_image_marks_that_do_not_pair_up_are_refused(row):
    with pytest.raises(DataError, match="enclose 16 tokens"):
        image_slots(torch.tensor([row]), START, SLOTS)


@pytest.mark.parametrize("shape", [(60, 90, 3), (448, 448, 3), (7, 300, 3)])
def test_square_pictures_are_pillows_bicubic_and_clips_colours(shape):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    square = np.asarray(Image.fromarray(pixels).resize((112, 112), Image.Resampling.BICUBIC), np.float32) / 255
    wanted = (square - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    assert np.allclose(normalised([pixels], 112)[0].permute(1, 2, 0), wanted, atol=1e-6)


def test_a_qwen_vl_is_told_by_its_configuration():
    assert claims(OFFICIAL) and not claims({"model_type": "qwen"}) and not claims({"visual": {}})


def test_an_int4_model_answers_as_its_unpacked_self(mllm, tmp_path):
    """Packed by us, c_attn with its bias in one; every other layer has a bias of its own, which counts."""
    tensors = official_tensors(mllm)
    for layer in range(2):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"):
            place = f"transformer.h.{layer}.{name}"
            packed = gptq.pack(tensors.pop(f"{place}.weight"), tensors.pop(f"{place}.bias", None), 32)
            if name == "mlp.c_proj":
                packed.bias.fill_(0.25)
            tensors |= {f"{place}.{part}": value for part, value in packed.state_dict().items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "model.safetensors")
    config = architecture(OFFICIAL | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}})
    packed = QwenVLMLLM(config).eval()
    weights.load(packed, tmp_path, key_table(config))
    plain = QwenVLMLLM(architecture(OFFICIAL)).eval()
    state = {name: value for name, value in packed.state_dict().items() if name in plain.state_dict()}
    layers = {name: part for name, part in packed.named_modules() if isinstance(part, gptq.GptqLinear)}
    state |= {f"{name}.weight": part.unpacked(torch.float32) for name, part in layers.items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    for layer in plain.language_model.model.layers:
        layer.mlp.down_proj.bias = torch.nn.Parameter(torch.full((128,), 0.25))
    features = plain.project(plain.tower(torch.randn(1, 3, 112, 112)))
    # in torch's own product, whose sums have another order
    batch = batch_of(shown()).with_features(features)
    assert torch.allclose(packed(batch)[1], plain(batch)[1], atol=1e-5)
