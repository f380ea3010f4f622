"""What is asked about a scene and answered, as token ids: short turns, each of them a dialogue of its own.

Half of what is asked for in vain is nearly there: a kind that is there in another colour, a colour that is there on
another kind. More is asked than when a model is measured of what takes a look at several things of a still, and of
textures, relations and motions that may not be there. Some is asked as people ask who do not know how scenes are spoken
of: for a description in plain words, for everything, for things that no scene has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Int

from segue import prepare
from segue.data.prompts import SEGMENT_PROMPTS
from segue.media import open_media
from segue.models.protocol import Processor
from segue.synth import Scene, box_sample, caption_sample, question_sample, region_sample, segmentation_sample
from segue.synth.drawings import KINDS
from segue.synth.meaning import Noun, Query, left_to_right
from segue.synth.painting import COLOURS
from segue.synth.phrases import Phrase, Question, comparisons, contrasts
from segue.synth.wording import LANGUAGES, Language, noun_forms, phrase_of, say
from segue.types import Media, Message, Sample

_MISSES, _HITS = 3, 2
_PUBLISHED, _PLAIN, _BOXES, _REGIONS = 0.6, 0.1, 0.35, 2
_ABSENT = 3  # phrases for what no scene has


class Ask(IntEnum):
    """The kinds of turns."""

    MASKS = 0
    BOX = 1
    CLOSED = 2
    REGION = 3
    CAPTION = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer as token ids, from behind the picture to the end of the answer.

    The answer begins at `answer`. `things` are meant by it, in the order of its `[SEG]`s if it has any. `cells` are
    the visual tokens, counted from the picture's first, that stand in the question once more.
    """

    ask: Ask
    ids: Int[np.ndarray, " s"]
    answer: int
    things: tuple[int, ...]
    cells: Int[np.ndarray, " c"]


def turns(
    scene: Scene, processor: Processor, rng: np.random.Generator, language: Language, *, frames: str
) -> tuple[Int[np.ndarray, " p"], list[Turn]]:
    """What all dialogues about a scene begin with, the picture's end included, and about forty turns, in no order.

    Of a clip the frames are shown that the plan `frames` takes.
    """
    media = open_media(scene.frames if scene.is_clip else scene.frames[0])
    shown = prepare.preprocess_media(media, processor, frames=frames, max_tiles=1)
    made = []
    for ask, sample, things in _asked(scene, rng, language):
        messages = [_about(message, media) for message in sample.messages]
        row = prepare.prepare(messages, processor, media=[shown], max_tiles=1)
        made.append((ask, row, things))
    tokens = len(shown.vision.rows)
    start = int((made[0][1].ids == processor.visual_id).nonzero()[tokens - 1]) + 2
    return made[0][1].ids[:start].numpy(), [
        Turn(
            ask,
            row.ids[start:].numpy(),
            int((row.labels >= 0).nonzero()[0]) - start,
            things,
            row.media[0].vision.rows[tokens:].numpy(),
        )
        for ask, row, things in made
    ]


def _about(message: Message, media: Media) -> Message:
    return replace(message, parts=tuple(media if isinstance(part, Media) else part for part in message.parts))


def _asked(scene: Scene, rng: np.random.Generator, language: Language) -> Iterator[tuple[Ask, Sample, tuple[int, ...]]]:
    order = left_to_right(scene.boxes)
    scene = replace(
        scene,
        phrases=(*scene.phrases, *_nearly(scene, rng), *contrasts(scene.facts, rng), *_plainly(scene, rng, language)),
        questions=(
            *scene.questions,
            *(() if scene.is_clip else comparisons(scene.facts, rng)),
            *_plain_questions(scene, rng, language),
        ),
    )
    for number, phrase in enumerate(scene.phrases):
        things = tuple(thing for thing in order if thing in phrase.objects)
        sample = segmentation_sample(scene, [number], rng, language=language)
        yield Ask.MASKS, _reworded(sample, phrase.words[language], scene, rng, language), things
        if len(things) == 1 and not scene.is_clip and rng.uniform() < _BOXES:
            yield Ask.BOX, box_sample(scene, number, rng, language=language), things
    for number in range(len(scene.questions)):
        yield Ask.CLOSED, question_sample(scene, [number], language=language), ()
    if not scene.is_clip:
        for thing in rng.permutation(len(scene.things))[:_REGIONS]:
            yield Ask.REGION, region_sample(scene, int(thing), rng, language=language), ()
    described = caption_sample(scene, rng, language=language)
    plain = say(f"plain.caption.{scene.media.kind}", language, rng)
    for sample in (described, _asking(described, plain, scene)):
        yield Ask.CAPTION, sample, scene.caption.objects


def _reworded(sample: Sample, phrase: str, scene: Scene, rng: np.random.Generator, language: Language) -> Sample:
    """The sample, mostly with the one wording that models are measured with; now and then in plain words."""
    share = rng.uniform()
    if share < _PUBLISHED:
        return _asking(sample, SEGMENT_PROMPTS[scene.media.kind].replace("{phrase}", phrase), scene)
    return _asking(sample, say("plain.ask", language, rng, phrase=phrase), scene) if share > 1 - _PLAIN else sample


def _asking(sample: Sample, question: str, scene: Scene) -> Sample:
    """The sample with another question for its first."""
    return replace(sample, messages=(Message.user(question, scene.media), *sample.messages[1:]))


def _plainly(scene: Scene, rng: np.random.Generator, language: Language) -> Iterator[Phrase]:
    """Everything; all of a colour that is there, and of any; and what no scene has."""
    everything = tuple(range(len(scene.things)))
    yield Phrase("attribute", Query(Noun()), everything, {language: say("plain.all", language, rng)})
    for colour in (scene.things[int(rng.integers(len(scene.things)))].colour, str(rng.choice(list(COLOURS)))):
        meant = tuple(place for place in everything if scene.things[place].colour == colour)
        words = say("plain.all_of", language, rng, colour=say(f"colour.{colour}", language, rng))
        yield Phrase("attribute", Query(Noun(colour=colour)), meant, {language: words})
    for _ in range(_ABSENT):
        colour = say(f"colour.{rng.choice(list(COLOURS))}", language, rng)
        words = say("plain.absent", language, rng, kind=say("absent", language, rng), colour=colour)
        yield Phrase("attribute", Query(Noun()), (), {language: words})


def _plain_questions(scene: Scene, rng: np.random.Generator, language: Language) -> Iterator[Question]:
    """Whether there is something that no scene has, and whether there is something that is there."""
    there = noun_forms(Noun(kind=scene.things[int(rng.integers(len(scene.things)))].kind), language, rng)["noun"]
    for kind, answer in ((say("absent", language, rng), "answer.missing"), (there, "answer.exists")):
        words = {language: say("plain.exists", language, rng, kind=kind)}
        yield Question("exists", words, {language: say(answer, language, rng)})


def _nearly(scene: Scene, rng: np.random.Generator) -> Iterator[Phrase]:
    """Phrases for what is nearly there, and a few for what is, said the same way."""
    there = {(thing.kind, thing.colour) for thing in scene.things}
    for number in range(_MISSES + _HITS):
        one, other = (scene.things[int(rng.integers(len(scene.things)))] for _ in range(2))
        if number >= _MISSES:
            noun = Noun(kind=one.kind, colour=one.colour)
        elif rng.uniform() < 0.5:
            noun = Noun(
                kind=one.kind, colour=str(rng.choice([name for name in COLOURS if (one.kind, name) not in there]))
            )
        else:
            kinds = [name for name in KINDS if (name, other.colour) not in there]
            noun = Noun(kind=str(rng.choice(kinds)), colour=other.colour)
        meant = tuple(
            place for place, thing in enumerate(scene.things) if (thing.kind, thing.colour) == (noun.kind, noun.colour)
        )
        words = {language: phrase_of(Query(noun), len(meant), language, rng) for language in LANGUAGES}
        yield Phrase("attribute", Query(noun), meant, words)
