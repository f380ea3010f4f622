"""Prompts in pieces, and prompts that begin like the last one. Numbers in names: conformance list of docs/cache.md."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from segue.models import prefill
from segue.models.prefill import LastPrompt, read_prompt
from segue.models.protocol import Prompt, positions


@pytest.fixture(scope="module")
def language():
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


def prompt_of(language, ids, attention=None):
    ids = torch.tensor(ids) if torch.is_tensor(ids) is False else ids
    attention = torch.ones_like(ids) if attention is None else attention
    return Prompt(language.get_input_embeddings()(ids), attention, positions(attention))


def ids(length, seed=0):
    return torch.randint(0, 50, (1, length), generator=torch.Generator().manual_seed(seed))


def whole(language, prompt):
    return read_prompt(language, prompt, DynamicCache())


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_a_prompt_in_pieces_is_the_same(language, monkeypatch, piece):
    prompt = prompt_of(language, ids(150))
    expected, cache = whole(language, prompt), DynamicCache()
    monkeypatch.setattr(prefill, "PIECE", piece)
    assert torch.allclose(read_prompt(language, prompt, cache), expected, atol=1e-5)
    assert cache.get_seq_length() == 150


def test_padded_rows_in_pieces_are_the_same(language, monkeypatch):
    attention = torch.ones(2, 40, dtype=torch.long)
    attention[1, :15] = 0
    prompt = prompt_of(language, torch.cat([ids(40), ids(40, 1)]), attention)
    expected = whole(language, prompt)
    monkeypatch.setattr(prefill, "PIECE", 16)
    assert torch.allclose(whole(language, prompt), expected, atol=1e-5)


def asked(language, *contents):
    """Prompts of one row each, with their contents."""
    return [(prompt_of(language, content), content[0]) for content in contents]


def behind(video, *questions):
    return [torch.cat([video, question], dim=1) for question in questions]


@pytest.fixture
def read(language):
    """Rows and tokens of each reading."""
    found = []
    hook = language.model.layers[0].register_forward_hook(lambda *call: found.append(tuple(call[2].shape[:2])))
    yield found
    hook.remove()


QUESTIONS = (ids(9, 1), ids(5, 2), ids(30, 3), ids(1, 4))


def test_45_prompts_go_on_together_from_the_one_that_began_alike(language, read):
    last, contents = LastPrompt(), behind(ids(100), *QUESTIONS)
    parts = list(last.read(language, asked(language, *contents)))
    assert read == [(1, 109), (3, 30)] and [known for *_, known in parts] == [0, 100]
    states = torch.cat([state for _, _, state, _ in parts])
    assert torch.allclose(states, torch.cat([whole(language, one) for one, _ in asked(language, *contents)]), atol=1e-5)
    for cache, prompt, _, _ in parts:
        assert cache.get_seq_length() == prompt.attention.shape[1]
        assert prompt.attention.sum(1).tolist() == [109] if len(prompt.attention) == 1 else [105, 130, 101]


def test_45_the_next_prompts_go_on_from_the_one_that_was_read_whole(language, read):
    last, (first, *others) = LastPrompt(), behind(ids(100), *QUESTIONS)
    list(last.read(language, asked(language, first)))
    *_, (_, _, states, _) = last.read(language, asked(language, *others))
    assert read == [(1, 109), (3, 30)]
    expected = torch.cat([whole(language, one) for one, _ in asked(language, *others)])
    assert torch.allclose(states, expected, atol=1e-5)


def test_prompts_of_two_media_are_read_in_their_order(language, read):
    contents = [*behind(ids(100), ids(4, 1), ids(6, 2)), *behind(ids(90, 7), ids(5, 3), ids(2, 4))]
    states = [state for _, _, state, _ in LastPrompt().read(language, asked(language, *contents))]
    assert read == [(1, 104), (1, 6), (1, 95), (1, 2)]
    expected = torch.cat([whole(language, one) for one, _ in asked(language, *contents)])
    assert torch.allclose(torch.cat(states), expected, atol=1e-5)


def test_no_more_prompts_are_read_together_than_a_piece_has_tokens(language, read, monkeypatch):
    monkeypatch.setattr(prefill, "PIECE", 70)
    contents = behind(ids(64), ids(5, 1), ids(30, 2), ids(30, 3), ids(30, 4))
    list(LastPrompt().read(language, asked(language, *contents)))
    assert read == [(1, 69), (2, 30), (1, 30)]


def test_45_the_cache_that_was_given_out_is_not_touched_by_the_next_prompt(language):
    last, content = LastPrompt(), ids(100)
    ((cache, *_),) = last.read(language, asked(language, content))
    before = [layer.keys.clone() for layer in cache.layers]
    other = torch.cat([content[:, :80], ids(20, 5)], dim=1)
    list(last.read(language, asked(language, other)))
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))


@pytest.mark.parametrize(
    ("content", "shared"),
    [
        (ids(100), 99),
        (torch.cat([ids(100), torch.tensor([[1]])], 1), 100),
        (torch.cat([ids(100)[:, :70], torch.tensor([[49, 49]])], 1), 70),
        (ids(100)[:, :80], 79),
        (ids(100)[:, :40], 0),
        (ids(100, 9), 0),
    ],
)
def test_what_two_prompts_share(language, content, shared):
    last = LastPrompt()
    list(last.read(language, asked(language, ids(100))))
    assert last.shared(prompt_of(language, content), content[0]) == shared


def test_another_medium_under_the_same_ids_shares_nothing(language):
    last, content = LastPrompt(), ids(100)
    list(last.read(language, asked(language, content)))
    other = content[0].clone()
    other[10] = -123  # another video's first token
    assert last.shared(prompt_of(language, content), other) == 0
    last.forget()
    assert last.shared(prompt_of(language, content), content[0]) == 0


@pytest.mark.parametrize(("visual", "shared"), [((), 100), ((40,), 100), ((40, 104), 0)])
def test_what_a_family_adds_goes_with_its_visual_tokens(language, visual, shared):
    """Deepstack features are given with the reading of the tokens that they belong to."""
    contents = behind(ids(100), ids(9, 1), ids(9, 2))
    last, prompts = LastPrompt(), [prompt_of(language, content) for content in contents]
    for content in contents:
        content[0, list(visual)] = -1
    list(last.read(language, [(prompts[0], contents[0][0])]))
    assert last.shared(replace(prompts[1], extra={"visual": True}), contents[1][0]) == shared


@pytest.mark.parametrize(("order", "known"), [((0, 1), 140), ((1, 0), 100)])
def test_what_a_family_adds_is_read_with_a_prompt_that_shares_more_than_the_others_do(language, order, known):
    """A picture shown in two turns: what all have in common ends before its second place."""

    def shown(row, places, **extra):
        content = row[0].clone()
        content[places] = -1
        return replace(prompt_of(language, row), extra=extra), content

    first, long, short = behind(ids(100), ids(40, 1), torch.cat([ids(40, 1), ids(9, 2)], 1), ids(9, 3))
    last, rows = LastPrompt(), [shown(long, [50, 120], visual=True), shown(short, [50])]
    list(last.read(language, [shown(first, [50, 120])]))
    assert last._known(language, [rows[number] for number in order]) == (known, 1)


@pytest.mark.parametrize("rows", [1, 6])
def test_what_only_some_have_in_common_is_read_once_too(language, read, rows):
    start, document = ids(70), ids(300, 1)
    contents = behind(start, ids(9, 2)) + behind(
        torch.cat([start, document], 1), *(ids(9, 3 + row) for row in range(rows))
    )
    states = [state for _, _, state, _ in LastPrompt().read(language, asked(language, *contents))]
    assert read == [(1, 79), (1, 309), (5, 9)][: 2 + (rows > 1)]
    expected = torch.cat([whole(language, one) for one, _ in asked(language, *contents)])
    assert torch.allclose(torch.cat(states), expected, atol=1e-5)


def test_no_padding_pushes_tokens_out_of_a_sliding_window(randomise):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    window = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 0}
    config = Qwen2Config(**sizes, **window, num_key_value_heads=2, vocab_size=50)
    sliding = randomise(Qwen2ForCausalLM(config), seed=1).eval().requires_grad_(False)
    contents = behind(ids(100), *QUESTIONS)
    states = [state for _, _, state, _ in LastPrompt().read(sliding, asked(sliding, *contents))]
    expected = torch.cat([whole(sliding, one) for one, _ in asked(sliding, *contents)])
    assert torch.allclose(torch.cat(states), expected, atol=1e-4)


@pytest.fixture
def stretching():
    """A language model whose rotary angles stretch with the length of a prompt beyond 64 tokens."""
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 100.0}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=50, max_position_embeddings=64, rope_parameters=rope)
    language = LlamaForCausalLM(config).eval().requires_grad_(False)
    for layer in language.model.layers:  # attention that is not all but even
        layer.self_attn.q_proj.weight.mul_(40)
        layer.self_attn.k_proj.weight.mul_(40)
    return language


def test_a_prompt_that_stretches_rotary_angles_is_read_by_its_whole_length(stretching, monkeypatch):
    prompt = prompt_of(stretching, ids(150))
    expected = stretching.model(inputs_embeds=prompt.embeddings).last_hidden_state[:, -1]
    monkeypatch.setattr(prefill, "PIECE", 40)
    assert torch.allclose(whole(stretching, prompt), expected, atol=1e-5)


def test_a_longer_prompt_read_before_leaves_no_stretch_behind(stretching):
    prompt = prompt_of(stretching, ids(150))
    expected = whole(stretching, prompt)
    whole(stretching, prompt_of(stretching, ids(300)))
    assert torch.allclose(whole(stretching, prompt), expected, atol=1e-5)


@pytest.mark.parametrize("lengths", [(200, 150), (200, 60), (60, 150)])
def test_prompts_that_stretch_rotary_angles_share_no_keys(stretching, lengths):
    last, video = LastPrompt(), ids(300)
    for length in lengths:
        content = torch.cat([video[:, : length - 1], ids(1, length)], dim=1)
        ((_, _, state, _),) = last.read(stretching, asked(stretching, content))
    assert torch.allclose(state, whole(stretching, prompt_of(stretching, content)), atol=1e-5)
