"""Target embeddings: prompts known without a language model, a sum of fixed vectors for an object's name and place.

In a model that begins from nothing the grounder waits for prompts that mean something, and the language model to be
told which prompts do. With target embeddings each learns alone: the grounder to find what one means, the language model
to say the one of what it is asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segue.grounding.sam2 import LanguageSam2
from segue.train.examples import Truth

_WORD, _PLACE, _NOISE, _JITTER = 0.75, 1.5, 0.2, 0.02
_ONLY_WORDS, _ONLY_PLACE, _HEARD = 0.2, 0.15, 0.85
_SQUARED = 0.3


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the objects of some rows.

    `said` counts, for each object, the words of `vectors` that it is called by. `places` (x, y in [0, 1]) are where
    it is on the frames that are asked about and show it, `of` names for each the object.
    """

    vectors: Float[Tensor, "w d"]
    said: Float[Tensor, "n w"]
    places: Float[Tensor, "p 2"]
    of: Int[Tensor, " p"]


def target_embeddings(truths: Sequence[Truth], grounder: LanguageSam2) -> Float[Tensor, "n d"]:
    """That of each object: a fixed vector for each word it is called by, and the mean embedding of its places.

    A place is embedded as SAM 2 embeds the places of a frame, so that a prompt and what it points at look alike. In a
    clip things move: then the places on all frames that are asked about are said at once.
    """
    return _coded(_known(truths, grounder), grounder)


def noisy_target_embeddings(
    truths: Sequence[Truth], grounder: LanguageSam2, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """Target embeddings as a grounder learns from them: as a language model will say them, never quite exact.

    By chance only words or only places; words left out; all of it louder or softer.
    """
    known = _known(truths, grounder)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, device=known.said.device, generator=generator)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, device=like.device, generator=generator)

    count = len(known.said)
    kind = drawn(count, 1)
    heard = known.said * (drawn(*known.said.shape) < _HEARD) * _louder(drawn(*known.said.shape))
    words = torch.where((kind < _ONLY_WORDS) | (kind > _ONLY_WORDS + _ONLY_PLACE), heard @ known.vectors, 0.0)
    placed = _placed(known.places + _JITTER * normal(known.places), known, grounder) * _louder(drawn(count, 1))
    return words + torch.where(kind > _ONLY_WORDS, placed, 0.0) + _NOISE * normal(words)


def target_embedding_loss(
    prompts: Float[Tensor, "n d"], truths: Sequence[Truth], grounder: LanguageSam2
) -> dict[str, Float[Tensor, ""]]:
    """How far prompts are from the target embeddings of the objects of some rows; n is 1 or more.

    `words` and `places` are cross-entropies: of each word of an object among it and all that the rows say of others,
    summed over its words, and of the cell of the frame that its centre lies in. They tell a fresh model early what
    matters. `distance` is the squared error, which brings the prompts to their size.
    """
    known = _known(truths, grounder)
    return _terms(prompts, _coded(known, grounder), known, grounder)


class VisualTargets(NamedTuple):
    """Visual features and what they show: number i the object `objects[i]`, whose centre lies at `centres[i]` (x, y in
    [0, 1]) of the frame; it counts `weights[i]`.
    """

    features: Float[Tensor, "c w"]
    objects: Int[Tensor, " c"]
    centres: Float[Tensor, "c 2"]
    weights: Float[Tensor, " c"]


def vision_alignment_loss(
    targets: VisualTargets, truths: Sequence[Truth], grounder: LanguageSam2
) -> dict[str, Float[Tensor, ""]]:
    """As `target_embedding_loss`, for features that were made prompts (c is 1 or more, their width d)."""
    known = _known(truths, grounder)
    said = known.said[targets.objects]
    placed: Tensor = _PLACE * grounder.sam2.shared_image_embedding(targets.centres)
    share = targets.weights / targets.weights.sum()
    here = _Known(known.vectors, said, targets.centres, torch.arange(len(said), device=said.device))
    return _terms(targets.features, said @ known.vectors + placed, here, grounder, share)


def _terms(
    prompts: Tensor, wanted: Tensor, known: _Known, grounder: LanguageSam2, share: Float[Tensor, " n"] | None = None
) -> dict[str, Tensor]:
    """The parts of the loss; `share` is by how much each object counts, all alike where None."""
    scale = prompts.shape[1] ** -0.5
    share = torch.full((len(prompts),), 1 / len(prompts), device=prompts.device) if share is None else share
    zero = prompts.sum() * 0.0
    terms = {"distance": (share * (prompts - wanted).square().mean(1)).sum(), "words": zero, "places": zero}
    if len(known.vectors):
        heard = prompts @ known.vectors.T * scale
        said = known.said > 0
        # each word that is said against all that are not, or words of one object would push one another away
        others = heard.masked_fill(said, -1e9).logsumexp(-1, keepdim=True)
        terms["words"] = ((torch.logaddexp(heard, others) - heard) * said * share[:, None]).sum()
    if len(known.places):
        cells = _PLACE * grounder.image_position_encoding()[0]
        chances = (prompts @ cells.flatten(1).to(prompts) * scale).log_softmax(-1)
        rows, columns = cells.shape[-2:]
        last = torch.tensor([columns - 1, rows - 1], device=prompts.device)
        column, row = (known.places * (last + 1)).long().clamp(min=0).minimum(last).unbind(-1)
        weights = share[known.of]
        terms["places"] = -(chances[known.of, row * columns + column] * weights).sum() / weights.sum()
    return terms


def summed(terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The parts of such a loss in the proportion that they are learned in."""
    return _SQUARED * terms["distance"] + terms["words"] + terms["places"]


def _known(truths: Sequence[Truth], grounder: LanguageSam2) -> _Known:
    width = grounder.sam2.no_memory_embedding.shape[-1]
    device = grounder.sam2.no_memory_embedding.device
    phrases = [phrase.split() for truth in truths for phrase in truth.phrases]
    vocabulary = {word: number for number, word in enumerate(sorted({word for words in phrases for word in words}))}
    counts = [Counter(words) for words in phrases]
    said = torch.tensor([[float(count[word]) for word in vocabulary] for count in counts])
    vectors = torch.stack([_word(word, width) for word in vocabulary]) if vocabulary else torch.zeros(0, width)
    shown = [truth.centres[:, list(truth.prompted)] for truth in truths]
    places = torch.cat([one.flatten(0, 1) for one in shown])
    times = torch.tensor([one.shape[1] for one in shown for _ in range(len(one))])
    of = torch.arange(len(phrases)).repeat_interleave(times).to(device)
    is_there = ~places.isnan().any(1)
    return _Known(_WORD * vectors.to(device), said.to(device), places[is_there], of[is_there])


def _coded(known: _Known, grounder: LanguageSam2) -> Float[Tensor, "n d"]:
    return known.said @ known.vectors + _placed(known.places, known, grounder)


def _placed(places: Tensor, known: _Known, grounder: LanguageSam2) -> Float[Tensor, "n d"]:
    count = len(known.said)
    coded: Tensor = grounder.sam2.shared_image_embedding(places)
    summed_up = coded.new_zeros(count, coded.shape[-1]).index_add(0, known.of, coded)
    shown = torch.bincount(known.of, minlength=count).clamp(min=1)
    return _PLACE * summed_up / shown[:, None]


def _louder(drawn: Tensor) -> Tensor:
    return 0.3 + 0.9 * drawn


@cache
def _word(word: str, width: int) -> Float[Tensor, " d"]:
    """A vector that stands for a word, the same in every process."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8]) >> 1
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))
