from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from segue.models.decoding import Decoder, Decoding, IncrementalText
from segue.models.protocol import Prompt, positions


@pytest.fixture(scope="module")
def language_model(randomise):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, intermediate_size=48, vocab_size=40, tie_word_embeddings=False)
    return randomise(Qwen2ForCausalLM(config), seed=1).eval()


@pytest.fixture(scope="module")
def prompt():
    """Embeddings of a prompt, as long as asked for."""
    return lambda length, seed=0: torch.randn(1, length, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def decoder(language_model, bare_mllm):
    """Decodes with a bare language model."""
    return Decoder(bare_mllm(language_model))


def padded(*rows):
    """Embeddings of several prompts as one that is padded on the left."""
    length = max(row.shape[1] for row in rows)
    embeddings = torch.cat([functional.pad(row, (0, 0, length - row.shape[1], 0), value=0.5) for row in rows])
    attention = torch.stack([torch.arange(length) >= length - row.shape[1] for row in rows]).long()
    return Prompt(embeddings, attention, positions(attention))


@pytest.fixture
def settings():
    """Greedy decoding of 12 tokens that knows no stop and no segmentation token."""
    return Decoding(is_over=lambda ids: False, seg_id=None, max_new_tokens=12)


@pytest.fixture
def run(language_model, bare_mllm):
    """Decodes prompts together to their end; one of them has one generation."""

    def decode(embeddings, decoding):
        decoder = Decoder(bare_mllm(language_model))
        (state,) = decoder.add(padded(embeddings), [decoding])
        while decoder.rows:
            decoder.step()
        return state.generation(embeddings)

    return decode


@pytest.fixture
def states_of(language_model):
    """States after the final norm of a prompt and a reply, in one pass without a cache; the reply's part of them."""

    def forward(embeddings, ids):
        reply = language_model.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
        whole = torch.cat([embeddings, reply], dim=1)
        return language_model.model(inputs_embeds=whole, use_cache=False).last_hidden_state[
            0, embeddings.shape[1] - 1 :
        ]

    return forward


@torch.no_grad()
def test_greedy_decoding_equals_a_full_forward_per_token_without_a_cache(
    language_model, prompt, run, states_of, settings
):
    ids = []
    for _ in range(12):
        ids.append(int(language_model.lm_head(states_of(prompt(7), ids)[-1]).argmax()))
    assert run(prompt(7), settings).ids == ids
    assert len(set(ids)) > 3  # the model says something, not one token over and over


@torch.no_grad()
def test_parity_seg_state_at_token_is_that_of_a_teacher_forced_forward_where_the_token_is_consumed(
    prompt, run, states_of, settings
):
    ids = run(prompt(7), settings).ids
    generation = run(prompt(7), replace(settings, seg_id=ids[4]))
    consumed = states_of(prompt(7), ids)[1:]  # position t of the reply, not t - 1 which chose it
    expected = consumed[torch.tensor(ids) == ids[4]]
    assert len(expected) == ids.count(ids[4]) >= 1
    assert torch.allclose(generation.seg_hidden, expected, atol=1e-5)
    assert generation.ids == ids


@torch.no_grad()
@pytest.mark.parametrize("place", range(5))
def test_a_segmentation_token_that_is_the_very_last_one_allowed_still_yields_its_state(
    place, prompt, run, states_of, settings
):
    ids = run(prompt(9, seed=3), settings).ids[: place + 1]
    generation = run(prompt(9, seed=3), replace(settings, seg_id=ids[place], max_new_tokens=place + 1))
    assert (generation.ids, generation.stop_reason) == (ids, "length")
    assert len(generation.seg_hidden) == ids.count(ids[place])
    assert torch.allclose(generation.seg_hidden[-1], states_of(prompt(9, seed=3), ids)[-1], atol=1e-5)


def test_an_answer_without_a_segmentation_token_has_no_states(prompt, run, settings):
    assert run(prompt(4), settings).seg_hidden.shape == (0, 32)


def test_a_segmentation_token_in_the_prompt_asks_for_nothing(language_model, run, settings):
    seg = 5
    embeddings = language_model.get_input_embeddings()(torch.tensor([[1, seg, 2, seg]])).detach()
    generation = run(embeddings, replace(settings, seg_id=seg))
    assert len(generation.seg_hidden) == generation.ids.count(seg)


@pytest.mark.parametrize("seg_place", [1, 4])
def test_rows_padded_on_the_left_equal_single_rows(seg_place, decoder, prompt, run, settings):
    prompts = [prompt(length, seed=length) for length in (3, 11, 6)]
    decoding = replace(settings, seg_id=run(prompts[1], settings).ids[seg_place])
    singles = [run(each, decoding) for each in prompts]
    states = decoder.add(padded(*prompts), [decoding] * 3)
    while decoder.rows:
        decoder.step()
    batched = [state.generation(prompts[0]) for state in states]
    assert [row.ids for row in batched] == [single.ids for single in singles]
    assert all(torch.allclose(a.seg_hidden, b.seg_hidden, atol=1e-5) for a, b in zip(batched, singles, strict=True))
    assert sum(len(row.seg_hidden) for row in batched) >= 1


@pytest.mark.parametrize("lengths", [(4, 9, 6), (9, 4, 14)])
def test_rows_that_come_while_others_are_decoded_say_what_they_say_alone(lengths, decoder, prompt, run, settings):
    prompts = [prompt(length, seed=length) for length in lengths]
    decodings = [replace(settings, max_new_tokens=count) for count in (4, 12, 9)]
    decodings = [replace(one, seg_id=run(each, one).ids[-1]) for one, each in zip(decodings, prompts, strict=True)]
    states = []
    for each, decoding in zip(prompts, decodings, strict=True):
        states += decoder.add(padded(each), [decoding])
        decoder.step()
        decoder.step()
    while decoder.rows:
        decoder.step()
    for state, each, decoding in zip(states, prompts, decodings, strict=True):
        generation, alone = state.generation(each), run(each, decoding)
        assert generation.ids == alone.ids
        assert torch.allclose(generation.seg_hidden, alone.seg_hidden, atol=1e-5)


def test_a_row_that_is_over_costs_nothing_while_the_others_go_on(language_model, decoder, prompt, run, settings):
    first, second = prompt(5), prompt(5, seed=9)
    short = replace(settings, max_new_tokens=2)
    rows = []
    hook = language_model.model.register_forward_pre_hook(
        lambda module, arguments, named: rows.append(len(named["inputs_embeds"])), with_kwargs=True
    )
    states = decoder.add(padded(first, second), [short, settings])
    while decoder.rows:
        decoder.step()
    hook.remove()
    assert rows == [2, 2] + [1] * 10
    assert [state.ids for state in states] == [run(first, short).ids, run(second, settings).ids]


def test_a_row_that_is_removed_says_no_more_and_changes_nothing_for_the_others(decoder, prompt, run, settings):
    first, second = prompt(5), prompt(8, seed=9)
    states = decoder.add(padded(first, second), [settings, settings])
    decoder.step()
    decoder.remove(states[0])
    decoder.remove(states[0])
    while decoder.rows:
        decoder.step()
    assert (len(states[0].ids), states[0].stop_reason) == (1, "cancelled")
    assert states[1].ids == run(second, settings).ids


def test_a_segmentation_token_that_also_ends_the_answer_yields_its_state(prompt, run, settings):
    ids = run(prompt(7), settings).ids
    generation = run(prompt(7), replace(settings, seg_id=ids[2], is_over=lambda said: said == ids[:3]))
    assert (generation.ids, generation.stop_reason) == (ids[:3], "stop")
    assert len(generation.seg_hidden) == ids[:3].count(ids[2])


def test_no_tokens_allowed_gives_an_empty_answer(prompt, run, settings):
    generation = run(prompt(4), replace(settings, max_new_tokens=0))
    assert (generation.ids, generation.stop_reason, len(generation.seg_hidden)) == ([], "length", 0)


def test_sampling_repeats_itself_for_a_seed_and_differs_for_another(prompt, run, settings):
    hot = replace(settings, temperature=1.5, max_new_tokens=30)
    first, again, other = (run(prompt(5), replace(hot, seed=seed)).ids for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first != run(prompt(5), replace(hot, temperature=0.0)).ids


def test_sampling_neither_uses_nor_moves_the_global_random_state(prompt, run, settings):
    hot = replace(settings, temperature=1.5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(prompt(5), hot).ids
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert run(prompt(5), hot).ids == first


@pytest.mark.parametrize("setting", [{"top_p": 1e-6, "temperature": 5.0}, {"temperature": 1e-4}])
def test_sampling_from_the_likeliest_token_alone_is_greedy(setting, prompt, run, settings):
    assert run(prompt(5), replace(settings, **setting)).ids == run(prompt(5), settings).ids


def test_each_row_is_sampled_by_its_own_seed(decoder, prompt, run, settings):
    hot = [replace(settings, temperature=1.5, seed=seed) for seed in (3, 4)] + [settings]
    states = decoder.add(padded(prompt(5), prompt(5), prompt(5)), hot)
    while decoder.rows:
        decoder.step()
    assert [state.ids for state in states] == [run(prompt(5), one).ids for one in hot]


def test_each_token_costs_one_pass_and_the_prompt_is_read_once(language_model, prompt, run, settings):
    lengths = []
    hook = language_model.model.register_forward_pre_hook(
        lambda module, arguments, named: lengths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    run(prompt(6), settings)
    hook.remove()
    assert lengths == [6] + [1] * 11


@pytest.mark.parametrize("text", ["Voilà, 日本 😀 [SEG].", "日", "a", "\n\n b", ""])
def test_text_that_comes_token_by_token_is_the_text_of_all_tokens(byte_tokenizer, text):
    ids = byte_tokenizer.encode(text, add_special_tokens=False)
    told, decoded = IncrementalText(byte_tokenizer), []

    class Counting:
        def decode(self, ids, *, skip_special_tokens):
            decoded.append(len(ids))
            return byte_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    told._tokenizer = Counting()
    pieces = [told.piece(ids[:count], is_last=count == len(ids)) for count in range(1, len(ids) + 1)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert max(decoded, default=0) <= 9  # a character of four bytes and the one before it


def test_a_character_that_never_ends_is_told_at_the_end(byte_tokenizer):
    ids = byte_tokenizer.encode("A 日", add_special_tokens=False)[:-1]
    told = IncrementalText(byte_tokenizer)
    pieces = [told.piece(ids[:count], is_last=count == len(ids)) for count in range(1, len(ids) + 1)]
    assert "".join(pieces) == byte_tokenizer.decode(ids)
