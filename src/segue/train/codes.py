"""Prompts that are known without a language model: what an object is called and where it is, as a sum of fixed codes.

In a model that begins from nothing the grounder waits for prompts that mean something, and the language model to be
told which prompts do. With codes each learns alone: the grounder to find what a code means, the language model to say
the code of what it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.grounding.sam2 import LanguageSam2
from segue.train.examples import Truth

_WORD, _PLACE, _NOISE = 0.75, 1.5, 0.2
_ONLY_WORDS, _ONLY_PLACE = 0.35, 0.25
_SQUARED = 0.3


def codes(truth: Truth, grounder: LanguageSam2) -> Float[Tensor, "n d"]:
    """The code of each object: a fixed vector for each word it is called by and, in a still, the code of its centre.

    A place is coded as SAM 2 codes the places of a frame, so that a prompt and what it points at look alike. In a clip
    things move, and words alone have to do.
    """
    words = _words(truth, grounder)
    return words + _places(truth, grounder) if len(truth.frames) == 1 else words


def loose_codes(truth: Truth, grounder: LanguageSam2, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Codes as a grounder learns from them: by chance only words or only the place, and never quite exact."""
    words, places = _words(truth, grounder), _places(truth, grounder)
    drawn = torch.rand(len(words), 1, device=words.device, generator=generator)
    noise = torch.randn(words.shape, device=words.device, generator=generator)
    said = torch.where((drawn < _ONLY_WORDS) | (drawn > _ONLY_WORDS + _ONLY_PLACE), words, 0.0)
    return said + torch.where(drawn > _ONLY_WORDS, places, 0.0) + _NOISE * noise


def code_loss(prompts: Float[Tensor, "n d"], wanted: Float[Tensor, "n d"], phrases: Sequence[str]) -> Float[Tensor, ""]:
    """How far prompts are from the codes that are wanted, whose phrases are given; n is 1 or more.

    Cross-entropy of the words, chosen among all words that the phrases have, tells a fresh model early what matters;
    the squared error beside it brings the prompts to the size of codes, and to their places.
    """
    known = sorted({word for phrase in phrases for word in phrase.split()})
    distance = functional.mse_loss(prompts, wanted)
    if not known:
        return distance
    vectors = _WORD * torch.stack([_word(word, prompts.shape[1]) for word in known]).to(prompts)
    said = torch.tensor([[word in phrase.split() for word in known] for phrase in phrases], device=prompts.device)
    chances = (prompts @ vectors.T / prompts.shape[1] ** 0.5).log_softmax(-1)
    return _SQUARED * distance - chances[said].mean()


def _words(truth: Truth, grounder: LanguageSam2) -> Float[Tensor, "n d"]:
    width = grounder.sam2.no_memory_embedding.shape[-1]
    rows = [
        torch.stack([_word(word, width) for word in phrase.split()] or [torch.zeros(width)]) for phrase in truth.phrases
    ]
    return _WORD * torch.stack([row.sum(0) for row in rows]).to(truth.centres)


def _places(truth: Truth, grounder: LanguageSam2) -> Float[Tensor, "n d"]:
    places: Tensor = grounder.sam2.shared_image_embedding(truth.centres)
    return _PLACE * places


@cache
def _word(word: str, width: int) -> Float[Tensor, " d"]:
    """A vector that stands for a word, the same in every process."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8]) >> 1
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))
