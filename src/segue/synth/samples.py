"""Scenes as samples: what is asked, what the right answer is, and which masks it points at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from segue.errors import DataError
from segue.geometry.masks import track
from segue.geometry.notation import parse_grounded
from segue.synth.meaning import left_to_right
from segue.synth.phrases import description
from segue.synth.scenes import Scene
from segue.synth.wording import Language, a, say, sentence
from segue.types import Media, Message, Region, Sample

SOURCE = "synth"


def segmentation_sample(
    scene: Scene,
    numbers: Sequence[int],
    rng: np.random.Generator,
    *,
    language: Language = "en",
    frames: Sequence[int] | None = None,
) -> Sample:
    """A dialogue that asks for the phrases of these numbers, one a turn, shown these frames (all without).

    An answer has one `[SEG]` per thing, from left to right by where they are first seen, and none if nothing is meant.
    """
    kind, order = "video" if scene.is_clip else "image", left_to_right(scene.boxes)
    turns: list[tuple[str, str]] = []
    regions: list[Region] = []
    for number in numbers:
        words = scene.phrases[number].words[language]
        things = [thing for thing in order if thing in scene.phrases[number].objects]
        key = "none" if not things else "one" if len(things) == 1 else "many"
        answer = say(f"found.{key}", language, rng, marks=_marks(len(things), language))
        turns.append((say(f"ask.{kind}", language, rng, phrase=words), answer))
        regions += [region_of(scene, thing, words, frames) for thing in things]
    return Sample(
        id=_name(scene, "segment", language, numbers),
        task="segment",
        messages=_dialogue(scene.media, turns),
        regions=tuple(regions),
        frames=_shown(scene, frames),
        source=SOURCE,
        group=scene.group,
    )


def question_sample(
    scene: Scene, numbers: Sequence[int], *, language: Language = "en", frames: Sequence[int] | None = None
) -> Sample:
    """A dialogue of the questions of these numbers, shown these frames (all without); it points at nothing."""
    asked = [scene.questions[number] for number in numbers]
    turns = [(question.words[language], question.answers[language]) for question in asked]
    return Sample(
        id=_name(scene, "chat", language, numbers),
        task="chat",
        messages=_dialogue(scene.media, turns),
        frames=_shown(scene, frames),
        source=SOURCE,
        group=scene.group,
    )


def caption_sample(
    scene: Scene, rng: np.random.Generator, *, language: Language = "en", frames: Sequence[int] | None = None
) -> Sample:
    """A request for a description, and the scene's grounded caption, shown these frames (all without)."""
    words = scene.caption.words[language]
    _, spoken = parse_grounded(words)
    regions = [
        replace(region_of(scene, thing, region.phrase, frames), span=region.span)
        for thing, region in zip(scene.caption.objects, spoken, strict=True)
    ]
    question = say("ask.caption.video" if scene.is_clip else "ask.caption.image", language, rng)
    return Sample(
        id=_name(scene, "caption", language),
        task="caption",
        messages=_dialogue(scene.media, [(question, words)]),
        regions=tuple(regions),
        frames=_shown(scene, frames),
        source=SOURCE,
        group=scene.group,
    )


def region_sample(scene: Scene, number: int, rng: np.random.Generator, *, language: Language = "en") -> Sample:
    """A question about one thing of a still that is marked by its mask, and what it is.

    Raises: DataError, for a clip: region prompts are for images.
    """
    if scene.is_clip:
        raise DataError(f"{scene.group} is a clip, and regions are marked in stills only; draw one with `scene`")
    question = Message.user(say("ask.region", language, rng), scene.media, (region_of(scene, number),))
    answer = Message("assistant", (sentence(a(description(scene.things[number]), language, rng), language),))
    return Sample(
        id=_name(scene, "region", language, [number]),
        task="region",
        messages=(question, answer),
        frames=(0,),
        source=SOURCE,
        group=scene.group,
    )


def region_of(scene: Scene, number: int, phrase: str = "", frames: Sequence[int] | None = None) -> Region:
    """A thing as a region: its visible masks at these frames (all without), its box in the first that shows it."""
    shown = list(_shown(scene, frames))
    boxes = scene.boxes[number, shown]
    seen = boxes[~np.isnan(boxes[:, 0])]
    masks = track(scene.visible[number, shown], np.array(shown, dtype=np.int64))
    return Region(phrase=phrase, box=seen[0] if len(seen) else None, masks=masks)


def _shown(scene: Scene, frames: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(range(len(scene.frames)) if frames is None else frames)


def _marks(count: int, language: Language) -> str:
    marks = ["[SEG]"] * count
    if language == "zh" or count < 2:
        return " ".join(marks)
    return ", ".join(marks[:-1]) + " and [SEG]"


def _dialogue(media: Media, turns: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    messages: list[Message] = []
    for question, answer in turns:
        messages += [Message.user(question, None if messages else media), Message("assistant", (answer,))]
    return tuple(messages)


def _name(scene: Scene, task: str, language: Language, numbers: Sequence[int] = ()) -> str:
    return "-".join([scene.group, task, language, *map(str, numbers)])
