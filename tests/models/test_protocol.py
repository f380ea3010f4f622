import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from segue.errors import ConfigError
from segue.models.protocol import Decoding, Prompt, decode, finished, positions, seg_states

NEVER = -1


@pytest.fixture(scope="module")
def language_model(randomise):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, intermediate_size=48, vocab_size=40, tie_word_embeddings=False)
    return randomise(Qwen2ForCausalLM(config), seed=1).eval()


@pytest.fixture(scope="module")
def prompt():
    """Embeddings of a prompt, as long as asked for."""
    return lambda length, seed=0: torch.randn(1, length, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def steps_of(language_model):
    """Decodes prompts that are padded where `attention` says so, step by step."""

    def start(embeddings, decoding, attention=None):
        if attention is None:
            attention = torch.ones(embeddings.shape[:2], dtype=torch.long)
        read = Prompt(embeddings, attention, positions(attention))
        return decode(language_model, read, decoding, language_model.lm_head)

    return start


@pytest.fixture
def settings():
    """Greedy decoding of 12 tokens that knows no stop and no segmentation token."""
    return Decoding(is_over=lambda ids: False, seg_id=NEVER, max_new_tokens=12)


@pytest.fixture
def run(steps_of):
    """Decodes one prompt to its end."""
    return lambda embeddings, decoding: finished(steps_of(embeddings, decoding))[0]


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
def test_rows_padded_on_the_left_equal_single_rows(seg_place, steps_of, prompt, run, settings):
    lengths = (3, 11, 6)
    singles = [run(prompt(length, seed=length), settings) for length in lengths]
    decoding = replace(settings, seg_id=singles[1].ids[seg_place])
    singles = [run(prompt(length, seed=length), decoding) for length in lengths]
    embeddings, attention = torch.randn(3, 11, 32), torch.zeros(3, 11, dtype=torch.long)
    for row, length in enumerate(lengths):
        embeddings[row, 11 - length :] = prompt(length, seed=length)[0]
        attention[row, 11 - length :] = 1
    batched = finished(steps_of(embeddings, decoding, attention))
    assert [row.ids for row in batched] == [single.ids for single in singles]
    assert all(torch.allclose(a.seg_hidden, b.seg_hidden, atol=1e-5) for a, b in zip(batched, singles, strict=True))
    assert sum(len(row.seg_hidden) for row in batched) >= 1


def test_a_row_that_is_over_says_no_more_while_the_others_go_on(steps_of, prompt, run, settings):
    embeddings = torch.cat([prompt(5), prompt(5, seed=9)])
    first, second = (run(row[None], settings).ids for row in embeddings)
    over = replace(settings, is_over=lambda ids: ids == first[:2])
    steps = steps_of(embeddings, over)
    said = list(steps)
    assert [row[0] for row in said] == first[:2] + [None] * 10
    assert [row[1] for row in said] == second
    rows = finished(steps_of(embeddings, over))
    assert [(row.ids, row.stop_reason) for row in rows] == [(first[:2], "stop"), (second, "length")]


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


@pytest.mark.parametrize(
    "setting",
    [{"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_p": 0.0}, {"top_p": 1.5}],
)
def test_sampling_settings_out_of_range_are_refused(setting, prompt, run, settings):
    with pytest.raises(ConfigError, match="out of range"):
        run(prompt(3), replace(settings, **setting))


def test_closing_the_generator_cancels_the_work(language_model, steps_of, prompt, settings):
    passes = []
    hook = language_model.model.register_forward_hook(lambda *_: passes.append(1))
    steps = steps_of(prompt(4), settings)
    said = list(islice(steps, 3))
    steps.close()
    hook.remove()
    assert (len(said), len(passes)) == (3, 3)
    assert list(steps) == []


def test_each_token_costs_one_pass_and_the_prompt_is_read_once(language_model, prompt, run, settings):
    lengths = []
    hook = language_model.model.register_forward_pre_hook(
        lambda module, arguments, named: lengths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    run(prompt(6), settings)
    hook.remove()
    assert lengths == [6] + [1] * 11


def test_the_callers_own_gradients_stay_on_between_steps(steps_of, prompt, settings):
    steps = steps_of(prompt(5), settings)
    next(steps)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("attention", "expected"),
    [([1, 1, 1], [0, 1, 2]), ([0, 0, 1, 1], [0, 0, 0, 1]), ([0], [0])],
)
def test_positions_count_real_tokens_only(attention, expected):
    assert positions(torch.tensor([attention])).tolist() == [expected]


def test_states_on_segmentation_tokens_come_row_by_row_in_reading_order():
    hidden = torch.arange(6.0).view(2, 3, 1)
    found = seg_states(hidden, torch.tensor([[7, 0, 7], [0, 7, 0]]), 7)
    assert found.flatten().tolist() == [0.0, 2.0, 4.0]
    assert seg_states(hidden, torch.zeros(2, 3, dtype=torch.long), 7).shape == (0, 1)
