"""The grounder alone: it learns to find what it is told on frames that are prompted, and by memory on the others.

It is told what a language model will tell it: target embeddings with noise, and, once there are any, what a language
model did say of the same things.

Letters in shapes: d prompt width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segue.grounding.model import VisionLanguageModel
from segue.grounding.sam2 import frame_square
from segue.media.sampling import choose
from segue.synth import Scene
from segue.train.examples import Truth, centre, covered
from segue.train.from_scratch import words
from segue.train.from_scratch.target_embeddings import noisy_target_embeddings, target_embeddings
from segue.train.mask_terms import decode_candidates, decode_followed, decode_masks, encode_frames, mask_terms, true_iou
from segue.train.recipe import LossWeights

_LOSSES = LossWeights(mask=2.0, dice=1.0, iou=1.0, presence=0.5)
_POINTS = 1024
_SAID = 0.7  # of the prompts are a language model's, where it said any
_THINGS = 3
_TURNS, _LONGEST = 12, 46  # that a language model is heard in, and tokens of the longest
_PROMPTED, _FOLLOWED = (1, 4), 2  # frames of a clip in a step


@dataclass(frozen=True, slots=True)
class Shown:
    """The truth about all things of a scene, and the prompts that a language model said for each of them."""

    truth: Truth
    said: Sequence[Float[Tensor, "_ d"]] = ()


def as_shown(scene: Scene, side: int, frames: str) -> Shown:
    """A scene as the grounder learns from it; of a clip the frames are prompted that the plan `frames` takes."""
    numbers = tuple(range(len(scene.frames)))
    return Shown(
        Truth(
            torch.stack([frame_square(frame, side) for frame in scene.frames]),
            torch.stack([torch.stack([covered(mask, side) for mask in masks]) for masks in scene.visible]),
            tuple(dict.fromkeys(choose(frames, len(numbers)))),
            numbers,
            tuple(f"{one.size} {one.texture} {one.colour} {one.kind}" for one in scene.things),
            torch.from_numpy(np.stack([[centre(mask) for mask in masks] for masks in scene.visible])).float(),
        )
    )


@torch.no_grad()
def heard(
    model: VisionLanguageModel, scene: words.Known, vocabulary: words.Vocabulary, rng: np.random.Generator
) -> list[Float[Tensor, "_ d"]]:
    """What the language model says of each thing of a scene, in some turns by chance, each given its right answer."""
    batch = words.batch_of([scene], vocabulary, rng, turns=_TURNS, longest=_LONGEST)
    opening = torch.from_numpy(scene.opening)
    states, _ = words.read_turns(model.mllm.language_model, opening, batch, vocabulary.visual)
    row, turn, place, thing = batch.segs.unbind(1)
    prompts = model.prompts(states[row, turn, place]).float()
    return [prompts[thing == number] for number in range(len(scene.things))]


def masks_step(
    model: VisionLanguageModel, rows: Sequence[Shown], rng: np.random.Generator, generator: torch.Generator
) -> dict[str, Float[Tensor, ""]]:
    """The losses of some things of these scenes, stills or clips of the same length, by name; `loss` is their sum."""
    grounder = model.grounder
    length = len(rows[0].truth.frames)
    places, prompted = [0], (0,)
    if length > 1:
        asked = int(rng.integers(_PROMPTED[0], _PROMPTED[1] + 1))
        places = sorted(rng.permutation(length)[: asked + _FOLLOWED].tolist())
        prompted = tuple(sorted(rng.permutation(len(places))[:asked].tolist()))
    chosen = [
        rng.choice(len(one.truth.masks), _THINGS, replace=len(one.truth.masks) < _THINGS).tolist() for one in rows
    ]
    truths = [part_of(one.truth, things, places, prompted) for one, things in zip(rows, chosen, strict=True)]
    prompts = noisy_target_embeddings(truths, grounder, generator).unflatten(0, (len(rows), _THINGS)).clone()
    for row, (one, things) in enumerate(zip(rows, chosen, strict=True)):
        for number, thing in enumerate(things):
            said = one.said[thing] if one.said else ()
            if len(said) and rng.uniform() < _SAID:
                prompts[row, number] = said[int(rng.integers(len(said)))]
    decode = decode_candidates if length == 1 else decode_followed
    terms = mask_terms(
        grounder,
        list(zip(truths, prompts, strict=True)),
        _LOSSES,
        generator,
        num_points=_POINTS,
        decode=decode,
    )
    return {"loss": sum((getattr(_LOSSES, name) * term for name, term in terms.items()), torch.zeros(())), **terms}


def part_of(truth: Truth, things: Sequence[int], places: Sequence[int], prompted: tuple[int, ...]) -> Truth:
    """The truth about some of the things on some of the frames; `prompted` are places among these."""
    at, who = list(places), torch.as_tensor(things)
    return replace(
        truth,
        frames=truth.frames[at],
        masks=truth.masks[who][:, at],
        prompted=prompted,
        numbers=tuple(truth.numbers[place] for place in at),
        phrases=tuple(truth.phrases[int(thing)] for thing in who),
        centres=truth.centres[who][:, at],
    )


@torch.no_grad()
def judge_masks(model: VisionLanguageModel, held: Sequence[Shown]) -> dict[str, float]:
    """Mean IoU on scenes kept back: by exact target embeddings and by what was said, prompted and followed."""
    found: dict[str, list[Tensor]] = {}
    for one in held:
        encoded = encode_frames(model.grounder, [one.truth])
        tellings = {"exact": target_embeddings([one.truth], model.grounder)}
        if one.said and all(len(said) for said in one.said):
            tellings["said"] = torch.stack([said[0] for said in one.said])
        for telling, prompts in tellings.items():
            masks = decode_masks(model.grounder, [(one.truth, prompts)], encoded)
            scores = true_iou(masks.logits, masks.masks)
            first = len(one.truth.prompted) * len(prompts)
            for way, part in (("prompted", scores[:first]), ("followed", scores[first:])):
                found.setdefault(f"{telling} {way}", []).append(part)
    means = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: round(float(part.mean()), 3) for name, part in means.items() if len(part)}
