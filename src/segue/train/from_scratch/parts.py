"""One part of a model after the other, for so many seconds of processor time each, on scenes that are drawn once.

Each part is judged alone while it learns, on scenes of the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from time import process_time

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segue.errors import ConfigError
from segue.grounding.model import VisionLanguageModel
from segue.media.sampling import choose
from segue.models.protocol import Processor
from segue.synth import Scene, clip, scene
from segue.synth.meaning import Facts
from segue.synth.scenes import Split, draw_size, generator
from segue.synth.wording import LANGUAGES
from segue.train.from_scratch import masks, sight, words
from segue.train.from_scratch.collage import NAMES, Collage, Collages, kept, undrawn
from segue.train.from_scratch.turns import turns
from segue.train.optim import optimizer, set_rates

_BETAS, _DECAY, _RISING, _CLIPPED = (0.9, 0.98), 0.02, 20, 5.0
_UNDRAWN = 0.04  # of the pictures are no drawings
_ENGLISH = 0.55
_LONGEST = 256  # pixels of a clip
FRAMES = "uniform:4"  # of a clip that are prompted, for the grounder, which has to follow on the others
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


def clips(split: Split, first: int, number: int) -> Iterator[Scene]:
    """So many clips of a split, eight frames each."""
    for index in range(first, first + number):
        height, width = draw_size(generator("clip size", split, 0, index))
        shrunk = min(1.0, _LONGEST / max(height, width))
        yield clip(0, index, split=split, size=(round(height * shrunk), round(width * shrunk)))


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
    scenes: Iterable[Scene],
    held: Iterable[Scene],
    plan: Plan,
    keep: Keep,
) -> None:
    """The language model and the projector of its `[SEG]`s learn from the tower's features of stills and clips."""
    vocabulary = vocabulary_of(processor)
    rng = np.random.default_rng()
    known, kept_back = ([know(model, processor, one, rng) for one in some] for some in (scenes, held))
    aids = words.Aids(model.mllm.width)
    shown = {False: [one for one in known if len(one.boxes)], True: [one for one in known if not len(one.boxes)]}
    # turns longer than this, up to that, how many of a scene, and whether of a clip; descriptions stand apart
    stills_ = ((0, 24, 20, False), (0, 46, 10, False), (0, 24, 20, False), (46, 110, 2, False))
    shapes = [shape for shape in (*stills_, (0, 28, 14, True), (40, 110, 2, True)) if shown[shape[3]]]
    numbers = count()

    def step() -> dict[str, Tensor]:
        above, longest, most, is_clip = shapes[next(numbers) % len(shapes)]
        some = shown[is_clip]
        chosen = [some[int(number)] for number in rng.integers(len(some), size=4)]
        batch = words.batch_of(chosen, vocabulary, rng, turns=most, longest=longest, above=above)
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
    """A still or a clip as the language model learns from it."""
    mllm = model.mllm
    frames = model.config.video_frames or model.family.video_frames
    places = list(dict.fromkeys(choose(frames, len(drawn.frames)))) if drawn.is_clip else [0]
    seen = [kept(drawn, mllm.config.tile_side, place) for place in places]
    features = sight.visual_features(mllm, sight.tower_states(mllm, sight.pixels_of([one.tile for one in seen])))
    opening, asked = turns(drawn, processor, rng, LANGUAGES[int(rng.uniform() > _ENGLISH)], frames=frames)
    shown = np.concatenate([sight.shown(one.masks, mllm.config.grid)[0] for one in seen])
    boxes = drawn.boxes[:, places] / np.tile([drawn.size[1], drawn.size[0]], 2)
    there = [box[~np.isnan(box[:, 0])] for box in boxes]
    centres = [((box[:, :2] + box[:, 2:]) / 2).astype(np.float32) for box in there]
    one_frame = boxes[:, 0] if not drawn.is_clip else np.zeros((0, 4))
    values, things = features.flatten(0, 1).half().numpy(), seen[0].things
    return words.Known(opening, values, shown, things, centres, one_frame, does(drawn), asked)


def does(drawn: Scene) -> Int[np.ndarray, "k m"]:
    """Which of `words.DOES` each thing of a clip does: 1, 0, or -1 where that is unclear; no columns of a still."""
    if not drawn.is_clip:
        return np.zeros((len(drawn.things), 0), dtype=np.int64)
    masks_ = {"visible": drawn.visible, "whole": drawn.whole}
    facts = Facts.of(drawn.things, drawn.poses, **masks_, whole_boxes=drawn.whole_boxes, areas=drawn.areas)
    truths = [[test(facts, number) for test in words.DOES.values()] for number in range(len(drawn.things))]
    return np.array([[-1 if truth is None else int(truth) for truth in row] for row in truths])


def grounded(model: VisionLanguageModel, processor: Processor, scenes: Iterable[Scene]) -> list[masks.Shown]:
    """Scenes as the grounder learns from them, with what the language model says of them now."""
    vocabulary, rng, side = vocabulary_of(processor), np.random.default_rng(), model.grounder.side
    return [
        replace(
            masks.as_shown(one, side, FRAMES),
            said=masks.heard(model, know(model, processor, one, rng), vocabulary, rng),
        )
        for one in scenes
    ]


def learn_masks(
    model: VisionLanguageModel,
    scenes: Sequence[masks.Shown],
    held: Sequence[masks.Shown],
    plan: Plan,
    keep: Keep,
) -> None:
    """The grounder learns to find what it is told in these stills and, where there are clips, to follow it.

    Steps of both take turns. Clips leave the image encoder as it is.
    """
    grounder, rng = model.grounder, np.random.default_rng()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    stills_, clips_ = ([one for one in scenes if (len(one.truth.frames) > 1) == is_clip] for is_clip in (False, True))
    kinds = [some for some in (stills_, clips_) if some]
    numbers = count()

    def step() -> dict[str, Tensor]:
        some = kinds[next(numbers) % len(kinds)]
        grounder.sam2.vision_encoder.requires_grad_(some is stills_)
        chosen = [some[int(number)] for number in rng.integers(len(some), size=4 if some is stills_ else 2)]
        return masks.masks_step(model, chosen, rng, generator)

    _learning(model, grounder)
    grounder.sam2.shared_image_embedding.requires_grad_(False)
    grounder.sam2.prompt_encoder.shared_embedding.requires_grad_(False)
    learn("masks", grounder, step, partial(masks.judge_masks, model, held), plan, keep)


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
