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
from segue.models.native_resolution.shared import Language
from segue.models.protocol import Decoding, Prompt, decode, finished, positions

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
def said(language_model):
    """Decodes a prompt whose image, where there are axes, stands apart from its text, over a cache of a kind."""

    def run(length, decoding):
        width = language_model.model.config.hidden_size
        embeddings = torch.randn(1, length, width, generator=torch.Generator().manual_seed(length))
        attention = torch.ones(1, length, dtype=torch.long)
        places = positions(attention)
        if isinstance(language_model, Language):
            places = torch.stack([places, places * 2, places]).clone()
        prompt = (part.to(language_model.lm_head.weight.device) for part in (embeddings, attention, places))
        return finished(decode(language_model, Prompt(*prompt), decoding, language_model.lm_head))[0]

    return run


@pytest.fixture
def settings():
    return Decoding(is_over=lambda ids: False, seg_id=-1, max_new_tokens=14)


def test_a_fixed_cache_says_what_a_growing_one_says(language_model, said, settings, monkeypatch):
    monkeypatch.setattr(static_decoding, "ROOM", 8)  # it grows on the way, twice
    assert static_decoding.suits(language_model, 20)
    growing = said(7, replace(settings, cache="growing"))
    assert len(set(growing.ids)) > 3
    decoding = replace(settings, seg_id=growing.ids[5])
    growing = said(7, replace(decoding, cache="growing"))
    over_fixed = said(7, replace(decoding, cache="fixed"))
    assert over_fixed.ids == growing.ids
    assert len(growing.seg_hidden) == growing.ids.count(growing.ids[5])
    assert torch.allclose(over_fixed.seg_hidden, growing.seg_hidden, atol=1e-5)


def test_chance_is_the_same_over_both_caches(said, settings):
    drawn = replace(settings, temperature=1.5, top_p=0.9, seed=4)
    assert said(5, replace(drawn, cache="fixed")).ids == said(5, replace(drawn, cache="growing")).ids


def test_a_segmentation_token_that_is_the_last_one_allowed_still_yields_its_state(said, settings):
    ids = said(6, settings).ids[:4]
    decoding = replace(settings, seg_id=ids[3], max_new_tokens=4)
    states = [said(6, replace(decoding, cache=kind)).seg_hidden for kind in ("fixed", "growing")]
    assert len(states[0]) == ids.count(ids[3])
    assert torch.allclose(*states, atol=1e-5)


def test_what_is_not_a_plain_layer_is_not_read_behind_its_back(language_model):
    layer = language_model.model.layers[1]
    handle = layer.mlp.register_forward_hook(lambda *_: None)
    assert not static_decoding.suits(language_model, 20)
    handle.remove()
    plain = layer.mlp.up_proj
    layer.mlp.up_proj = torch.nn.Sequential(plain)
    assert not static_decoding.suits(language_model, 20)
    layer.mlp.up_proj = plain
    assert static_decoding.suits(language_model, 20)


def test_sliding_windows_keep_the_growing_cache(randomise):
    config = Qwen2Config(**NARROW, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not static_decoding.suits(Qwen2ForCausalLM(config), 20)


def test_an_encoding_that_changes_with_the_length_keeps_the_growing_cache_where_it_would():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope, max_position_embeddings=1000))
    assert [static_decoding.suits(llama, longest) for longest in (20, 999)] == [True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")
def test_a_recorded_step_says_what_a_growing_cache_says(language_model, said, settings, monkeypatch):
    monkeypatch.setattr(static_decoding, "ROOM", 8)
    language_model.cuda()
    try:
        growing = said(7, replace(settings, cache="growing"))
        recorded = said(7, replace(settings, cache="auto"))
    finally:
        language_model.cpu()
    assert recorded.ids == growing.ids
