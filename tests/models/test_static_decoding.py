from dataclasses import replace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLTextConfig,
    Qwen3VLTextModel,
)

from segue.models import static_decoding
from segue.models.decoding import Decoder, Decoding
from segue.models.native_resolution.shared import Language
from segue.models.prefill import LastPrompt
from segue.models.protocol import Prompt, positions
from segue.models.static_decoding import StaticDecoder, supports_static_decoding

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 40,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}}
NARROW = {name: value for name, value in SIZES.items() if name != "head_dim"} | {"hidden_size": 64}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**NARROW)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "qwen25_vl": lambda: Language(Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**NARROW, **AXES)), 64, 40),
    "qwen3_vl": lambda: Language(Qwen3VLTextModel(Qwen3VLTextConfig(**SIZES, **AXES)), 32, 40),
}


@pytest.fixture(scope="module", params=MODELS)
def language_model(request, randomise):
    return randomise(MODELS[request.param](), seed=1).eval().requires_grad_(False)


@pytest.fixture
def said(language_model, bare_mllm):
    """Decodes prompts that come two steps apart, over a cache of a kind, with a seed of their own each.

    Where there are axes, images stand apart from text.
    """

    def run(lengths, decoding, static=None):
        decoder, states = Decoder(bare_mllm(language_model), static), []
        device = language_model.lm_head.weight.device
        for seed, length in enumerate(lengths):
            width = language_model.model.config.hidden_size
            embeddings = torch.randn(1, length, width, generator=torch.Generator().manual_seed(length))
            attention = torch.ones(1, length, dtype=torch.long)
            places = positions(attention)
            if isinstance(language_model, Language):
                places = torch.stack([places, places * 2, places]).clone() // 2
            prompt = Prompt(*(part.to(device) for part in (embeddings, attention, places)))
            states += decoder.add(prompt, [replace(decoding, seed=seed)])
            decoder.step()
            decoder.step()
        while decoder.rows:
            decoder.step()
        return [state.generation(embeddings) for state in states]

    return run


@pytest.fixture
def settings():
    return Decoding(is_over=lambda ids: False, seg_id=None, max_new_tokens=14)


def same(one, other):
    return [row.ids for row in one] == [row.ids for row in other] and all(
        torch.allclose(a.seg_hidden, b.seg_hidden, atol=1e-5) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("lengths", [(7,), (7, 12, 3, 20)])
def test_a_static_cache_says_what_a_growing_one_says(language_model, said, settings, monkeypatch, lengths):
    monkeypatch.setattr(static_decoding, "ROOM", 8)  # it grows on the way, twice
    assert supports_static_decoding(language_model, 40)
    growing = said(lengths, settings)
    assert len(set(growing[0].ids)) > 3
    decoding = replace(settings, seg_id=growing[0].ids[5])
    growing, static = said(lengths, decoding), StaticDecoder(language_model)
    assert len(growing[0].seg_hidden) >= 1
    assert same(said(lengths, decoding, static), growing)
    # the same buffers serve the next answers, of other rows
    kept = static.keys[0]
    assert same(said(lengths[::-1], decoding, static), said(lengths[::-1], decoding))
    assert static.keys[0] is kept and static.lengths == []


@pytest.mark.parametrize("is_static", [False, True])
def test_prompts_that_begin_alike_say_what_they_say_alone(language_model, bare_mllm, settings, is_static):
    """What they have in common is read once, what differs together, padded behind it."""
    embed, prompts = language_model.get_input_embeddings(), []
    for length in (9, 3, 14, 1):
        chance = torch.Generator().manual_seed(length)
        ids = torch.cat([torch.arange(70) * 7 % 40, torch.randint(0, 40, (length,), generator=chance)])
        attention = torch.ones(1, len(ids), dtype=torch.long)
        places = positions(attention)
        if isinstance(language_model, Language):
            places = torch.stack([places, places * 2, places]) // 2
        prompts.append((Prompt(embed(ids[None]), attention, places), ids))

    def said(*groups):
        decoder = Decoder(bare_mllm(language_model), StaticDecoder(language_model) if is_static else None)
        last, states = LastPrompt(), []
        for group in groups:
            states += decoder.add_alike(group, [settings] * len(group), last)
            decoder.step()
        while decoder.rows:
            decoder.step()
        return [state.generation(prompts[0][0].embeddings) for state in states], sum(one.cached for one in states)

    alone = [said([prompt])[0][0] for prompt in prompts]
    assert len({tuple(one.ids) for one in alone}) == 4
    for groups, reused in (([prompts], 3), ([prompts[:1], prompts[1:]], 3), ([prompts[:3], prompts[3:]], 3)):
        together, known = said(*groups)
        assert same(together, alone) and known == 70 * reused


def test_a_reading_that_fails_half_way_leaves_no_rows_in_a_cache_that_is_kept(language_model, bare_mllm, settings):
    embed, ids = language_model.get_input_embeddings(), torch.arange(90) * 7 % 40
    attention = torch.ones(1, 90, dtype=torch.long)
    places = positions(attention)
    places = places.expand(3, 1, 90) if isinstance(language_model, Language) else places
    static = StaticDecoder(language_model)
    decoder, last = Decoder(bare_mllm(language_model), static), LastPrompt()
    known = (Prompt(embed(ids[None]), attention, places), ids)
    broken = (replace(known[0], embeddings=known[0].embeddings[..., :3]), torch.flip(ids, [0]))
    with pytest.raises(RuntimeError):
        decoder.add_alike([known, broken], [settings] * 2, last)
    assert static.lengths == [] and decoder.rows == []
    (state,) = decoder.add_alike([known], [settings], last)
    decoder.step()
    assert len(state.ids) == 1 and static.lengths == [90]


def test_chance_is_the_same_over_both_caches(language_model, said, settings):
    drawn = replace(settings, temperature=1.5, top_p=0.9)
    assert same(said((5, 9), drawn, StaticDecoder(language_model)), said((5, 9), drawn))


def test_a_segmentation_token_that_is_the_last_one_allowed_still_yields_its_state(language_model, said, settings):
    ids = said((6,), settings)[0].ids[:4]
    decoding = replace(settings, seg_id=ids[3], max_new_tokens=4)
    static, growing = said((6,), decoding, StaticDecoder(language_model)), said((6,), decoding)
    assert len(static[0].seg_hidden) == ids.count(ids[3])
    assert same(static, growing)


def test_what_is_not_a_plain_layer_is_not_read_behind_its_back(language_model):
    layer = language_model.model.layers[1]
    handle = layer.mlp.register_forward_hook(lambda *_: None)
    assert not supports_static_decoding(language_model, 20)
    handle.remove()
    plain = layer.mlp.up_proj
    layer.mlp.up_proj = torch.nn.Sequential(plain)
    assert not supports_static_decoding(language_model, 20)
    layer.mlp.up_proj = plain
    assert supports_static_decoding(language_model, 20)


def test_sliding_windows_keep_the_growing_cache(randomise):
    config = Qwen2Config(**NARROW, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not supports_static_decoding(Qwen2ForCausalLM(config), 20)


def test_an_encoding_that_changes_with_the_length_keeps_the_growing_cache_where_it_would():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope, max_position_embeddings=1000))
    assert [supports_static_decoding(llama, longest) for longest in (1000, 1001)] == [True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")
def test_a_recorded_step_says_what_a_growing_cache_says_and_is_recorded_once(
    language_model, said, settings, monkeypatch
):
    monkeypatch.setattr(static_decoding, "ROOM", 8)
    language_model.cuda()
    try:
        static, lengths = StaticDecoder(language_model), (7, 12, 3)
        growing, recorded = said(lengths, settings), said(lengths, settings, static)
        graphs = dict(static.recorded)
        again = said(lengths, settings, static)
    finally:
        language_model.cpu()
    assert same(recorded, growing) and same(again, growing)
    assert graphs and static.recorded == graphs
