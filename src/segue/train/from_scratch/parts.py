"""One part of a model after the other, for so many seconds of processor time each, on scenes that are drawn once.

Each part is judged alone while it learns, on scenes of the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import process_time

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.errors import ConfigError
from segue.grounding.model import VisionLanguageModel
from segue.models.protocol import Processor
from segue.synth import Scene, scene
from segue.synth.scenes import Split
from segue.synth.wording import LANGUAGES
from segue.train.from_scratch import sight, words
from segue.train.from_scratch.collage import NAMES, Collage, Collages, kept, undrawn
from segue.train.from_scratch.turns import turns
from segue.train.optim import optimizer, set_rates

_BETAS, _DECAY, _RISING, _CLIPPED = (0.9, 0.98), 0.02, 20, 5.0
_UNDRAWN = 0.04  # of the pictures are no drawings
_ENGLISH = 0.55
_FALLING = 0.5  # of the time the rate falls

Step = Callable[[], dict[str, Float[Tensor, ""]]]
"""Makes a batch, and gives its losses by name, `loss` among them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a part learns: seconds of processor time, the peak rate, and batches to a step."""

    seconds: float
    rate: float
    batches: int


Keep = Callable[[Mapping[str, object]], None]
"""Keeps the model as it is, and notes these figures of it."""


def learn(
    part: str, module: nn.Module, step: Step, judge: Callable[[], dict[str, float]], plan: Plan, keep: Keep
) -> None:
    """Learn until the time is over; four times it is judged and kept. Rates fall over the second half.

    Linear layers learn with Muon; embeddings, the head of the words, and what is below `aids`, with AdamW.
    """
    parameters = {name: one for name, one in module.named_parameters() if one.requires_grad}
    others = ("aids.", "embed_tokens.", "lm_head.")
    matrices = {one for name, one in parameters.items() if one.ndim == 2 and not any(word in name for word in others)}
    steps = optimizer(
        {part: list(parameters.values())}, {part: plan.rate}, betas=_BETAS, weight_decay=_DECAY, matrices=matrices
    )
    began, done, judged, sums = process_time(), 0, 0, dict[str, float]()
    while (share := (process_time() - began) / plan.seconds) < 1:
        set_rates(steps, min(1.0, (done + 1) / _RISING) * min(1.0, (1 - share) / _FALLING))
        for _ in range(plan.batches):
            losses = step()
            (losses["loss"] / plan.batches).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / plan.batches
        nn.utils.clip_grad_norm_(parameters.values(), _CLIPPED)
        steps.step()
        steps.zero_grad(set_to_none=True)
        done += 1
        if share * 4 >= judged + 1:
            judged += 1
            means = {name: round(value / done, 4) for name, value in sums.items()}
            keep({"part": part, "steps": done, "seconds": round(process_time() - began), **means, **judge()})
    keep({"part": part, "steps": done, "seconds": round(process_time() - began), **judge()})


def stills(split: Split, first: int, number: int) -> Iterator[Scene]:
    """So many scenes of a split, from number `first` on."""
    return (scene(0, index, split=split) for index in range(first, first + number))


def learn_sight(
    model: VisionLanguageModel, scenes: Sequence[Scene], held: Sequence[Scene], plan: Plan, keep: Keep
) -> None:
    """The vision tower and the projector learn to tell what collages of the scenes show; eight to a batch."""
    mllm = model.mllm
    side, tokens = mllm.config.tile_side, mllm.config.grid
    patches = side // mllm.config.vision_config.patch_size[0]
    collages = Collages([kept(one, side) for one in scenes], [one.size[1] / one.size[0] for one in scenes])
    heads = sight.Heads(mllm.width, mllm.config.vision_config.hidden_size)
    rng = np.random.default_rng()
    plain = [kept(one, side) for one in held]

    def step() -> dict[str, Tensor]:
        shown = [undrawn(rng, side) if rng.uniform() < _UNDRAWN else collages.make(rng) for _ in range(8)]
        labels = sight.labels_of(shown, tokens, patches)
        return sight.sight_losses(mllm, heads, sight.pixels_of([one.tile for one in shown]), labels)

    _learning(model, mllm.vision_tower, mllm.projector)
    module = nn.ModuleDict({"tower": mllm.vision_tower, "projector": mllm.projector, "aids": heads})
    learn("sight", module, step, partial(judge_sight, model, heads, plain), plan, keep)


@torch.no_grad()
def judge_sight(model: VisionLanguageModel, heads: sight.Heads, held: Sequence[Collage]) -> dict[str, float]:
    """The share of things whose kind, colour, texture and size are told rightly, from all tokens that show them."""
    hits: list[list[bool]] = []
    for one in held:
        thing, _ = sight.shown(one.masks, model.mllm.config.grid)
        states = sight.tower_states(model.mllm, sight.pixels_of([one.tile]))
        told = sight.told_of(heads, sight.visual_features(model.mllm, states))
        for number in range(len(one.things)):
            mine = torch.from_numpy(thing == number)
            if mine.any():
                guesses = [scores[0, mine].log_softmax(-1).sum(0) for scores in told[:4]]
                chosen = [int(guess[: len(names)].argmax()) for guess, names in zip(guesses, NAMES, strict=True)]
                hits.append([bool(guess == truth) for guess, truth in zip(chosen, one.things[number], strict=True)])
    means = np.mean(hits, axis=0)
    return {
        name: round(float(mean), 3) for name, mean in zip(("kind", "colour", "texture", "size"), means, strict=True)
    }


def learn_words(
    model: VisionLanguageModel,
    processor: Processor,
    scenes: Sequence[Scene],
    held: Sequence[Scene],
    plan: Plan,
    keep: Keep,
) -> None:
    """The language model and the projector of its `[SEG]`s learn from the tower's features of the scenes."""
    vocabulary = vocabulary_of(processor)
    rng = np.random.default_rng()
    known, kept_back = ([know(model, processor, one, rng) for one in some] for some in (scenes, held))
    aids = words.Aids(model.mllm.width)
    shapes = ((24, 20), (46, 10), (110, 3))  # the longest turn, and how many of a scene
    numbers = count()

    def step() -> dict[str, Tensor]:
        longest, most = shapes[(0, 1, 0, 2)[next(numbers) % 4]]
        chosen = [known[int(number)] for number in rng.integers(len(known), size=4)]
        batch = words.batch_of(chosen, vocabulary, rng, turns=most, longest=longest)
        return words.words_losses(model, aids, batch, vocabulary)

    _learning(model, model.mllm.language_model, model.seg_projector)
    module = nn.ModuleDict({"words": model.mllm.language_model, "prompts": model.seg_projector, "aids": aids})
    learn("words", module, step, partial(judge_words, model, aids, kept_back, vocabulary), plan, keep)


@torch.no_grad()
def judge_words(
    model: VisionLanguageModel, aids: words.Aids, held: Sequence[words.Known], vocabulary: words.Vocabulary
) -> dict[str, float]:
    """The losses on scenes that were kept back, always the same turns."""
    rng = np.random.default_rng(0)
    batches = (
        words.batch_of(held[start : start + 4], vocabulary, rng, turns=16, longest=46)
        for start in range(0, len(held), 4)
    )
    losses = [words.words_losses(model, aids, batch, vocabulary) for batch in batches]
    return {f"held {name}": round(float(np.mean([float(one[name]) for one in losses])), 4) for name in losses[0]}


@torch.no_grad()
def know(model: VisionLanguageModel, processor: Processor, drawn: Scene, rng: np.random.Generator) -> words.Known:
    """A still as the language model learns from it."""
    mllm = model.mllm
    one = kept(drawn, mllm.config.tile_side)
    features = sight.visual_features(mllm, sight.tower_states(mllm, sight.pixels_of([one.tile])))
    opening, asked = turns(drawn, processor, rng, LANGUAGES[int(rng.uniform() > _ENGLISH)], frames="uniform:4")
    shown, _ = sight.shown(one.masks, mllm.config.grid)
    scale = np.array([drawn.size[1], drawn.size[0]], dtype=np.float32)
    centres = [(box[:, :2] + box[:, 2:]) / 2 / scale for box in drawn.boxes]
    return words.Known(opening, features[0].half().numpy(), shown, one.things, centres, asked)


def vocabulary_of(processor: Processor) -> words.Vocabulary:
    """The tokens that the losses of the words look for."""
    digits = (processor.tokenizer.encode(str(digit), add_special_tokens=False)[-1] for digit in range(10))
    if processor.seg_id is None:
        raise ConfigError("a model without a grounder has no [SEG] to learn; train one with a grounder")
    return words.Vocabulary(processor.seg_id, processor.visual_id, frozenset(digits))


def _learning(model: VisionLanguageModel, *parts: nn.Module) -> None:
    """Let these parts learn and no others."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
