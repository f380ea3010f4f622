"""Dialogues of many turns about one scene: much is learned from each picture that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from segue.errors import DataError
from segue.geometry.notation import box_text
from segue.synth.meaning import left_to_right
from segue.synth.phrases import description
from segue.synth.samples import SOURCE, caption_sample, question_sample, region_of, segmentation_sample
from segue.synth.scenes import Scene
from segue.synth.wording import Language, a, say, sentence
from segue.types import Message, Region, Sample, Task

_MASKS, _CAPTIONS = 0.4, 0.25

Turn = tuple[str, str, tuple[Region, ...]]
"""A question, its answer, and what the answer points at."""


def mixed_sample(
    scene: Scene,
    rng: np.random.Generator,
    *,
    turns: int,
    language: Language = "en",
    frames: Sequence[int] | None = None,
) -> Sample:
    """A dialogue of as many turns about the scene, shown these frames (all without), of all kinds in any order.

    Two in five ask for masks; the others for short answers, of stills also for boxes, and sometimes for a caption.
    Regions are called by all their attributes, whatever the words of the question were.
    """
    made = [_caption_turn(scene, rng, language, frames)] * (rng.uniform() < _CAPTIONS)
    numbers = [int(number) for number in rng.permutation(len(scene.phrases))]
    for number in numbers[: round(_MASKS * turns)]:
        asked = segmentation_sample(scene, [number], rng, language=language, frames=frames)
        meant = scene.phrases[number].objects
        made.append(_turn(asked, [thing for thing in left_to_right(scene.boxes) if thing in meant], scene))
    single = [number for number in numbers if len(scene.phrases[number].objects) == 1]
    if not scene.is_clip:
        made += [_box_turn(scene, number, rng, language) for number in single[: turns // 4]]
    for number in rng.permutation(len(scene.questions))[: max(0, turns - len(made))]:
        made.append(_turn(question_sample(scene, [int(number)], language=language, frames=frames), (), scene))
    chosen = [made[int(place)] for place in rng.permutation(len(made))[:turns]]
    shown = tuple(range(len(scene.frames)) if frames is None else frames)
    return _sample(scene, "segment", language, chosen, shown)


def box_sample(scene: Scene, number: int, rng: np.random.Generator, *, language: Language = "en") -> Sample:
    """A request for the box of a phrase that means one thing, answered in words.

    Raises: DataError, for a clip, or a phrase that means no thing or several.
    """
    if scene.is_clip or len(scene.phrases[number].objects) != 1:
        raise DataError(f"phrase {number} of {scene.group} does not mean one thing of a still, so it has no box")
    return _sample(scene, "chat", language, [_box_turn(scene, number, rng, language)], (0,))


def regions_sample(scene: Scene, rng: np.random.Generator, *, language: Language = "en") -> Sample:
    """A dialogue about all things of a still, each marked by its mask: what it is, in any order.

    Raises: DataError, for a clip: region prompts are for images.
    """
    if scene.is_clip:
        raise DataError(f"{scene.group} is a clip, and regions are marked in stills only; draw one with `scene`")
    order = [int(number) for number in rng.permutation(len(scene.things))]
    turns: list[Turn] = []
    for place in rng.permutation(len(order)):
        question = say("ask.region", language, rng).replace("region1", f"region{place + 1}")
        noun = a(description(scene.things[order[place]]), language, rng)
        turns.append((question, sentence(noun, language), ()))
    marked = tuple(region_of(scene, number) for number in order)
    return _sample(scene, "region", language, turns, (0,), marked)


def _caption_turn(scene: Scene, rng: np.random.Generator, language: Language, frames: Sequence[int] | None) -> Turn:
    return _turn(caption_sample(scene, rng, language=language, frames=frames), scene.caption.objects, scene)


def _turn(sample: Sample, things: Sequence[int], scene: Scene) -> Turn:
    question, answer = (
        "".join(part for part in message.parts if isinstance(part, str)).strip() for message in sample.messages
    )
    named = zip(sample.regions, things, strict=True)
    return question, answer, tuple(replace(region, phrase=_attributes(scene, thing)) for region, thing in named)


def _attributes(scene: Scene, thing: int) -> str:
    one = scene.things[thing]
    return f"{one.size} {one.texture} {one.colour} {one.kind}"


def _box_turn(scene: Scene, number: int, rng: np.random.Generator, language: Language) -> Turn:
    phrase = scene.phrases[number]
    words = box_text(scene.boxes[phrase.objects[0], 0], scene.size)
    return say("ask.box", language, rng, phrase=phrase.words[language]), say("found.box", language, rng, box=words), ()


def _sample(
    scene: Scene,
    task: Task,
    language: Language,
    turns: Sequence[Turn],
    frames: tuple[int, ...],
    marked: tuple[Region, ...] = (),
) -> Sample:
    messages: list[Message] = []
    for question, answer, _ in turns:
        asked = Message.user(question) if messages else Message.user(question, scene.media, marked)
        messages += [asked, Message("assistant", (answer,))]
    return Sample(
        id=f"{scene.group}-{task}-{language}",
        task=task,
        messages=tuple(messages),
        regions=tuple(region for _, _, regions in turns for region in regions),
        frames=frames,
        source=SOURCE,
        group=scene.group,
    )
