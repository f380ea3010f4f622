"""Qwen's tokenizer: a fast one built from its vocabulary file, and the three ways in which a text's marks are read.

Source: `tokenization_qwen.py` and `qwen.tiktoken`, which come with Qwen-VL's checkpoints.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from segue.errors import CheckpointError
from segue.models.tokenizers import load_tokenizer

VOCABULARY = "qwen.tiktoken"
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = (END_OF_TEXT, TURN_START, TURN_END, *(f"<|extra_{number}|>" for number in range(205)))
IMAGE_START, IMAGE_END, IMAGE_PAD = "<img>", "</img>", "<imgpad>"
PLACE_MARKS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
MARKS = (*PLACE_MARKS, IMAGE_START, IMAGE_END, IMAGE_PAD)
SPECIAL_TOKENS = (*CONTROL, *MARKS)

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_tiktoken(file: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a vocabulary file: each line a token's bytes in base64 and its rank.

    Text is normalised before special tokens are looked for, so that a mark whose last sign carries a combining
    character is none.

    Raises: CheckpointError, if the file cannot be read or its ranks do not count up from 0.
    """
    ranks = _ranks(file)
    letters = bytes_to_unicode()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(names[left], names[right]) for left, right in _merges(ranks)]
    backend = Tokenizer(BPE({names[token]: rank for token, rank in ranks.items()}, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _ranks(file: Path) -> dict[bytes, int]:
    try:
        pairs = [line.split() for line in file.read_bytes().splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (OSError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{file} is no tiktoken vocabulary ({error}); fetch it again") from error
    if sorted(ranks.values()) != list(range(len(pairs))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise CheckpointError(
            f"{file} has {len(ranks)} tokens on {len(pairs)} lines; expected ranks from 0 without gaps and all single "
            "bytes among them. Fetch it again"
        )
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts that each longer token is made of, in order of the tokens' ranks.

    They are what merging its bytes leaves, lowest rank first, when the token itself may not be used.
    """
    merges = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        left, right = _halves(token, ranks)
        merges.append((left, right))
    return merges


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts, limit = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= limit:
            raise CheckpointError(f"token {limit} of the vocabulary cannot be made of two others; fetch it again")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def load(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder: its vocabulary, or the fast tokenizer that was made of one and saved.

    Raises: CheckpointError, if neither is there or one cannot be read.
    """
    vocabulary = folder / VOCABULARY
    return from_tiktoken(vocabulary) if vocabulary.is_file() else load_tokenizer(folder)


def write_tiktoken(tokenizer: PreTrainedTokenizerFast, file: Path) -> None:
    """Write the vocabulary of a tokenizer as the original has it: the inverse of `from_tiktoken`."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    special = tokenizer.get_added_vocab()
    ranks = {rank: name for name, rank in tokenizer.get_vocab().items() if name not in special}
    lines = (
        base64.b64encode(bytes(letters[letter] for letter in name)) + b" %d\n" % rank
        for rank, name in sorted(ranks.items())
    )
    file.write_bytes(b"".join(lines))
