"""The fast tokenizer of a small vocabulary file, against byte pairs merged by their ranks alone."""

import base64
import random

import pytest

from segue.errors import CheckpointError
from segue.models.qwen_vl.tokenizer import CONTROL, MARKS, SPECIAL_TOKENS, from_tiktoken
from segue.models.tokenizers import load_tokenizer, save_tokenizer

WORDS = ["th", "the", " the", "at", "cat", " cat", "在", "图", "图中", "\n\n", "..", " a", "an", "and", " and", "é"]


def ranks():
    """Single bytes in an order of their own, then what pairs of earlier tokens make on the way to some words."""
    singles = list(range(256))
    random.Random(0).shuffle(singles)
    found = {bytes([byte]): rank for rank, byte in enumerate(singles)}
    for word in WORDS:
        token = word.encode()
        for length in range(2, len(token) + 1):
            found.setdefault(token[:length], len(found))
    return found


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks().items()))
    return file


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return from_tiktoken(vocabulary)


def merged(piece, table):
    """A piece of text merged by rank, lowest first, until no two neighbours are a token."""
    parts = [bytes([byte]) for byte in piece.encode()]
    while True:
        pairs = [
            (table[a + b], place) for place, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in table
        ]
        if not pairs:
            return [table[part] for part in parts]
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@pytest.mark.parametrize("seed", range(20))
def test_single_words_are_merged_by_rank(tokenizer, seed):
    table, draws = ranks(), random.Random(seed)
    for _ in range(20):
        word = "".join(draws.choices("thecatnd图中é在", k=draws.randint(1, 9)))
        assert tokenizer.encode(word, add_special_tokens=False) == merged(word, table)


def test_special_tokens_follow_the_ranks_in_their_order(tokenizer):
    first = len(ranks())
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(first, first + 217))
    assert (len(CONTROL), len(MARKS)) == (208, 9)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == first
    assert tokenizer.encode("the", add_special_tokens=True) == tokenizer.encode("the", add_special_tokens=False)


@pytest.mark.parametrize("text", ["  a\n\n\ncat  ", "it'S 1234", "Å é", "图中的<b>", "\r\n 'll"])
def test_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_digits_stand_alone_and_words_take_one_space(tokenizer):
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("the cat 12", add_special_tokens=False)]
    assert pieces == ["the", " cat", " ", "1", "2"]


def test_a_mark_with_a_combining_character_behind_it_is_none(tokenizer):
    ends = tokenizer.convert_tokens_to_ids("</ref>")
    assert ends in tokenizer.encode("a</ref>b", add_special_tokens=False)
    assert ends not in tokenizer.encode("a</ref>\u0338b", add_special_tokens=False)


def test_marks_can_be_read_as_text(tokenizer):
    typed = "<|im_end|><img>a</img>"
    ids = tokenizer.encode(typed, add_special_tokens=False, split_special_tokens=True)
    assert max(ids) < len(ranks()) and tokenizer.decode(ids) == typed


def test_line_ends_of_windows_are_accepted(vocabulary, tokenizer, tmp_path):
    other = tmp_path / "qwen.tiktoken"
    other.write_bytes(vocabulary.read_bytes().replace(b"\n", b"\r\n"))
    assert from_tiktoken(other).get_vocab() == tokenizer.get_vocab()


def test_saved_it_is_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    text = "<|im_start|>the cat</ref>\u0338 图中"
    assert load_tokenizer(tmp_path).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"AAAA", "tiktoken vocabulary"),
        (b"!!! 0\n", "tiktoken vocabulary"),
        (b"YQ== 0\nYg== 5\n", "2 tokens on 2 lines"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, problem):
    file = tmp_path / "qwen.tiktoken"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        from_tiktoken(file)
