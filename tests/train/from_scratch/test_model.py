from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from segue import loading
from segue.media import open_media
from segue.models import FAMILIES
from segue.models.protocol import GROUNDING_TOKENS
from segue.options import Options
from segue.train.from_scratch.model import (
    LanguageSizes,
    Sam2Sizes,
    Scratch,
    TowerSizes,
    begin,
    configuration,
    train_tokenizer,
    write,
)

SMALL = Scratch(
    tower=TowerSizes(width=32, layers=1, heads=2, mlp=48, patch=14, tile=112),
    language=LanguageSizes(width=32, layers=1, heads=2, mlp=48, positions=512),
    sam2=Sam2Sizes(
        side=128,
        embed=8,
        stages=(1, 1, 1, 1),
        windows=(8, 4, 4, 4),
        whole=(),
        width=32,
        decoder_mlp=48,
        memory=8,
        memory_layers=1,
    ),
    pieces=300,
    video_frames="first:3",
)
SPECIAL = (*FAMILIES["internvl"].special_tokens, *GROUNDING_TOKENS)
TEXTS = [
    "user\nPlease segment the red star.",
    "assistant\nIt is [SEG].",
    "user\n请分割红色的星星。",
    "assistant\n好的，[SEG]。",
] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(SMALL, tmp_path_factory.mktemp("scratch") / "model", TEXTS, seed=5)


def test_what_is_written_is_a_model_like_any_other(folder, picture):
    loaded = loading.load(folder, device="cpu")
    answer = loaded.ask(open_media(picture()), "Where?", options=Options(prefill="[SEG]."))
    assert len(answer.regions) == 1 and answer.regions[0].masks is not None
    assert loaded.model.config.video_frames == "first:3" and loaded.processor.most_tiles == 1
    assert loaded.lineage["model_hash"]


def test_the_same_seed_gives_the_same_weights_and_another_others(folder, tmp_path):
    again, other = (load_file(write(SMALL, tmp_path / str(s), TEXTS, seed=s) / "model.safetensors") for s in (5, 6))
    first = load_file(folder / "model.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mllm.language_model.lm_head.weight"], other["mllm.language_model.lm_head.weight"])


def test_nothing_is_left_at_zero_and_the_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    model = begin(configuration(SMALL, 320), seed=0)
    assert torch.equal(state, torch.random.get_rng_state())
    still = [name for name, p in model.named_parameters() if p.ndim > 1 and not bool(p.any())]
    assert still == []
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@torch.no_grad()
def test_the_first_heads_of_a_fresh_tower_look_at_neighbours():
    sizes = replace(SMALL, tower=TowerSizes(width=192, layers=2, heads=6, mlp=64, patch=8, tile=144))
    tower = begin(configuration(sizes, 320), seed=0).mllm.vision_tower
    tower.set_attn_implementation("eager")
    draws = torch.Generator().manual_seed(0)
    output = tower(torch.randn(1, 3, 144, 144, generator=draws), output_attentions=True)
    side, middle = 18, 1 + 9 * 18 + 9
    for layer, ways in ((0, ((1, 0), (-1, 0), (0, 1), (0, -1))), (1, ((1, 1), (-1, 1), (1, -1), (-1, -1)))):
        looks = output.attentions[layer][0, :, middle]
        for head, (right, down) in enumerate(ways):
            assert int(looks[head].argmax()) == middle + right + down * side and looks[head].max() > 0.3
        assert looks[4:].max() < 0.3


@pytest.mark.parametrize(
    "text", ["Please segment the red star.", "请分割红色的星星。", "a\n\tb  c ", "ünïcödé 🙂 <p> x </p>"]
)
def test_the_tokenizer_gives_back_what_it_was_given_in_any_language(text):
    tokenizer = train_tokenizer(TEXTS, 300, SPECIAL)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_stand_alone_and_special_tokens_are_one_piece_each():
    tokenizer = train_tokenizer(["2026 2026 2026 1000 1000"] * 50, 300, SPECIAL)
    assert tokenizer.encode("2026").tokens == ["2", "0", "2", "6"]
    assert tokenizer.encode("It is [SEG]<|im_end|>").tokens[-2:] == ["[SEG]", "<|im_end|>"]
    assert tokenizer.get_vocab_size() <= 300 + 20


def test_frequent_words_become_one_piece():
    tokenizer = train_tokenizer(TEXTS * 10, 400, SPECIAL)
    assert len(tokenizer.encode("Please segment the red star.").ids) < 12
