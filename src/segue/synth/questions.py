"""Every question of generated scenes as a row of its own, to be measured on: nothing lies on a disk.

Stills and clips are those of the split's seed 0, from index 0, every other one asked in Chinese. Of a scene every
phrase is asked for, and every question; of a still also up to three boxes in words and what its first thing is.
`target` holds `kind` and `of` (the kind of phrase or question), and what the answer is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from segue.data.base import Rows
from segue.data.prompts import SEGMENT_PROMPTS
from segue.errors import DataError
from segue.synth import Scene, box_sample, clip, question_sample, region_sample, scene, segmentation_sample
from segue.synth.scenes import Split, check_split
from segue.synth.wording import LANGUAGES, Language, say, vocabulary
from segue.types import Media, Message, Sample

Form = Literal["still", "clip"]
Place = tuple[Form, int, int]
"""Still or clip, its index, and which of its questions."""

_BOXES = 3


def load(root: Path, split: str, *, stills: int = 100, clips: int = 30) -> Rows:
    """A row for each question about the first stills and clips of a split. The root is not used.

    Raises: ConfigError, for a split that is not train, validation or test.
    """
    chosen = check_split(split)
    scenes: list[tuple[Form, int]] = [("still", index) for index in range(stills)]
    scenes += [("clip", index) for index in range(clips)]
    rows: list[Place] = [
        (form, index, number) for form, index in scenes for number in range(_count(form, index, chosen))
    ]
    return Rows(f"scene_questions/{split}", rows, partial(_sample, split=chosen), _medium)


def _count(form: Form, index: int, split: Split) -> int:
    """How many questions there are about a scene: known of the first ones, counted on the others."""
    known = recorded_counts().get(f"{split} {form}", ())
    return known[index] if index < len(known) else count(form, index, split)


def count(form: Form, index: int, split: Split) -> int:
    """How many questions there are about a scene, which is drawn for it."""
    return len(list(_questions(_drawn(form, index, split), index)))


@cache
def recorded_counts() -> Mapping[str, Sequence[int]]:
    """The counts of the first scenes by split and form (`test still`); none, where another Pillow draws than did."""
    text = resources.files("segue.synth").joinpath("question_counts.txt").read_text(encoding="utf-8")
    entries = dict(line.split(": ") for line in text.splitlines() if not line.startswith("#"))
    if entries.pop("pillow") != PIL.__version__:
        return {}
    return {name: tuple(map(int, counts.split())) for name, counts in entries.items()}


def _medium(row: Place) -> str:
    form, index, _ = row
    return f"{form}-{index}"


def _sample(row: Place, _: np.random.Generator, *, split: Split) -> Sample:
    form, index, number = row
    return _of_scene(form, index, split)[number]


@lru_cache(maxsize=4)
def _of_scene(form: Form, index: int, split: Split) -> tuple[Sample, ...]:
    drawn = _drawn(form, index, split)
    media = drawn.media
    samples = tuple(_about(sample, media, number) for number, sample in enumerate(_questions(drawn, index)))
    if len(samples) != (known := _count(form, index, split)):
        raise DataError(f"{form} {index} of {split} is drawn with {len(samples)} questions here, {known} elsewhere")
    return samples


def _about(sample: Sample, media: Media, number: int) -> Sample:
    """A sample about the one medium of its scene, so that what is asked together is about the same."""
    question = sample.messages[0]
    parts = tuple(media if isinstance(part, Media) else part for part in question.parts)
    messages = (replace(question, parts=parts), *sample.messages[1:])
    return replace(sample, id=f"{sample.group}-{number}", messages=messages)


@lru_cache(maxsize=4)
def _drawn(form: Form, index: int, split: Split) -> Scene:
    return scene(0, index, split=split) if form == "still" else clip(0, index, split=split)


def _questions(drawn: Scene, index: int) -> Iterator[Sample]:
    """All that is asked about a scene, in a fixed order."""
    language, rng = LANGUAGES[index % len(LANGUAGES)], np.random.default_rng(index)
    words = {phrase.words[language]: number for number, phrase in enumerate(drawn.phrases)}
    for text, number in words.items():
        yield _phrase(drawn, number, text, language)
    if not drawn.is_clip:
        single = [number for number, phrase in enumerate(drawn.phrases) if len(phrase.objects) == 1]
        for number in single[:_BOXES]:
            yield _box(drawn, number, language, rng)
        yield _region(drawn, language, rng)
    for number, question in enumerate(drawn.questions):
        yield _told(question_sample(drawn, [number], language=language), kind="closed", of=question.kind)


def _phrase(drawn: Scene, number: int, text: str, language: Language) -> Sample:
    sample = segmentation_sample(drawn, [number], np.random.default_rng(0), language=language)
    question = Message.user(SEGMENT_PROMPTS[drawn.media.kind].replace("{phrase}", text), drawn.media)
    return _told(replace(sample, messages=(question, sample.messages[-1])), kind="mask", of=drawn.phrases[number].kind)


def _box(drawn: Scene, number: int, language: Language, rng: np.random.Generator) -> Sample:
    sample, phrase = box_sample(drawn, number, np.random.default_rng(0), language=language), drawn.phrases[number]
    question = Message.user(say("ask.box", language, rng, phrase=phrase.words[language]), drawn.media)
    box = [float(value) for value in drawn.boxes[phrase.objects[0], 0]]
    sample = replace(sample, messages=(question, sample.messages[-1]))
    return _told(sample, kind="box", of=phrase.kind, box=box)


def _region(drawn: Scene, language: Language, rng: np.random.Generator) -> Sample:
    thing, names = drawn.things[0], vocabulary(language)
    words = [[word.split(" / ")[0] for word in names[key]] for key in (f"kind.{thing.kind}", f"colour.{thing.colour}")]
    return _told(region_sample(drawn, 0, rng, language=language), kind="region", of=thing.kind, words=words)


def _told(sample: Sample, **target: Any) -> Sample:
    return replace(sample, target=target)
