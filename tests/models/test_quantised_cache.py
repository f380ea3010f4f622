"""Keys and values in 8 bits: what they cost, and that rows and prompts are cut and joined with them as without."""

import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

import segue
from segue.models import prefill
from segue.models.decoding import Decoder, Decoding
from segue.models.prefill import LastPrompt, read_prompt
from segue.models.protocol import Prompt, positions
from segue.models.quantised_cache import QuantisedCache, packed, unpacked


@pytest.fixture(scope="module")
def language(randomise):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, intermediate_size=96, vocab_size=50, tie_word_embeddings=False)
    return randomise(Qwen2ForCausalLM(config), seed=1).eval().requires_grad_(False)


@pytest.fixture
def prompt(language):
    """A prompt of one row, of so many tokens."""

    def make(length, seed=0):
        ids = torch.randint(0, 50, (1, length), generator=torch.Generator().manual_seed(seed))
        attention = torch.ones_like(ids)
        return Prompt(language.get_input_embeddings()(ids), attention, positions(attention)), ids[0]

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_kept_to_within_half_a_step_of_their_token_and_head(dtype):
    states = torch.randn(2, 3, 7, 16, generator=torch.Generator().manual_seed(0))
    states[0, 1, 2, 3], states[1, :, 4] = 60.0, 0.0
    states = states.to(dtype)
    parts = packed(states)
    assert (parts.dtype, parts.shape[-1]) == (torch.int8, 20)
    half = states.float().abs().amax(-1, keepdim=True) / 254
    assert ((unpacked(parts, torch.float32) - states.float()).abs() <= half * (1 + 1e-5)).all()
    assert not unpacked(parts, dtype)[1, :, 4].any()


def test_scales_stay_with_their_numbers_when_tokens_are_cut_and_padded():
    states = torch.randn(2, 3, 7, 16, generator=torch.Generator().manual_seed(0))
    moved = functional.pad(packed(states)[[1], :, 2:5], (0, 0, 3, 0))
    assert torch.equal(unpacked(moved, torch.float32)[:, :, 3:], unpacked(packed(states[[1], :, 2:5]), torch.float32))
    assert not unpacked(moved, torch.float32)[:, :, :3].any()


def test_a_prompt_weighs_a_quarter_and_its_state_is_nearly_the_same(language, prompt, monkeypatch):
    asked, _ = prompt(300)
    full, cache = DynamicCache(), QuantisedCache()
    exact, state = (read_prompt(language, asked, one) for one in (full, cache))
    assert 0 < float((state - exact).norm() / exact.norm()) < 0.02
    sizes = [sum(layer.keys.nbytes + layer.values.nbytes for layer in one.layers) for one in (cache, full)]
    assert sizes[0] * 16 * 4 == sizes[1] * (16 + 4)  # heads of 16 numbers in float32
    monkeypatch.setattr(prefill, "PIECE", 64)
    assert torch.allclose(read_prompt(language, asked, QuantisedCache()), state, atol=1e-4)


def test_a_prompt_goes_on_from_the_last_one_in_8_bits(language, prompt):
    last, (second, content) = LastPrompt(), prompt(200)
    _, (cache, _, states, known) = last.read(
        language, [prompt(200), (second, content), (second, content)], QuantisedCache
    )
    assert known == 199 and cache.layers[0].keys.dtype == torch.int8
    expected = read_prompt(language, second, QuantisedCache())
    assert torch.allclose(states, expected.expand(2, -1), atol=1e-4)


def test_rows_that_join_say_what_they_say_alone(language, prompt, bare_mllm):
    settings = Decoding(is_over=lambda ids: False, seg_id=None, max_new_tokens=12)

    def decode(*lengths):
        decoder, states = Decoder(bare_mllm(language), None, QuantisedCache), []
        for length in lengths:
            states += decoder.add(prompt(length, seed=length)[0], [settings])
            decoder.step()
        while decoder.rows:
            decoder.step()
        return [state.ids for state in states]

    assert decode(30, 70, 11) == [decode(length)[0] for length in (30, 70, 11)]


def test_a_model_is_loaded_with_it_and_says_so(official_folder):
    engine = segue.load(official_folder, quantize_kv=True)
    caches, new = [], engine.new_cache
    engine.new_cache = lambda: caches.append(new()) or caches[-1]
    assert engine.ask(None, "What?", options=segue.Options(max_new_tokens=3)).lineage["dtype"].endswith("+kv8")
    assert caches[0].layers[0].keys.dtype == torch.int8
