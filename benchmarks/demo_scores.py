"""How good is the demo model? Its scores on the fixed test split of the generated scenes, which training never sees.

    python benchmarks/demo_scores.py [--model demo] [--stills 100] [--clips 30] [--json FILE]

Stills and clips are numbers 0, 1, 2 ... of the split (`segue.data.synth`), in sizes drawn from 128 to 640 pixels; half
of them are asked in English, half in Chinese. Every phrase of a scene is asked for in a question of its own, decoded
greedily with the engine's defaults. A phrase counts as answered "not there" if no pixel is found.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

import segue
from segue.data.synth import Phrase, Scene, clip, region_of, scene
from segue.data.synth.wording import LANGUAGES, Language, say, vocabulary
from segue.engine import Engine
from segue.evals.masks import contour_accuracy, region_similarity
from segue.geometry.boxes import iou as box_iou
from segue.geometry.masks import box_of
from segue.geometry.notation import parse_boxes
from segue.types import Finished, Media, Message


@dataclass(slots=True)
class Scores:
    """What was counted so far."""

    shared: int = 0
    joined: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)
    absent: list[bool] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    mask_boxes: list[float] = field(default_factory=list)
    boxes: list[float] = field(default_factory=list)
    answers: dict[str, list[bool]] = field(default_factory=dict)
    regions: list[bool] = field(default_factory=list)

    def table(self) -> dict[str, float]:
        """The figures, each in [0, 1]."""
        asked = [is_right for answers in self.answers.values() for is_right in answers]
        figures = {
            "image cIoU": self.shared / max(self.joined, 1),
            **{f"image cIoU, {kind}": pair[0] / max(pair[1], 1) for kind, pair in sorted(self.kinds.items())},
            "no-target accuracy": _mean(self.absent),
            "target accuracy": _mean(self.present),
            "video J&F": (_mean(self.similarity) + _mean(self.accuracy)) / 2,
            "video J": _mean(self.similarity),
            "video F": _mean(self.accuracy),
            "box accuracy@0.5, in words": _mean([value >= 0.5 for value in self.boxes]),
            "box accuracy@0.5, of masks": _mean([value >= 0.5 for value in self.mask_boxes]),
            "closed questions": _mean(asked),
            **{f"closed questions, {kind}": _mean(right) for kind, right in sorted(self.answers.items())},
            "regions named, kind and colour": _mean(self.regions),
        }
        return {name: round(float(value), 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--stills", type=int, default=100)
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--split", default="test", choices=["test", "validation"])
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    engine, scores, begun = segue.load(settings.model), Scores(), time.perf_counter()
    for number in range(settings.stills):
        score_still(engine, scene(0, number, split=settings.split), LANGUAGES[number % 2], scores, number)
    for number in range(settings.clips):
        score_clip(engine, clip(0, number, split=settings.split), LANGUAGES[number % 2], scores)
    figures = scores.table()
    print(f"{settings.stills} stills and {settings.clips} clips, {time.perf_counter() - begun:.0f} s")
    for name, value in figures.items():
        print(f"{name:34} {value:.3f}")
    if settings.json:
        settings.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def score_still(engine: Engine, drawn: Scene, language: Language, scores: Scores, number: int) -> None:
    """Masks of all phrases, boxes in words, short answers, and one marked region."""
    rng = np.random.default_rng(number)
    media = drawn.media
    for phrase, found in asked(engine, drawn, media, language):
        truth = drawn.visible[list(phrase.objects)].any(axis=0)
        (scores.present if phrase.objects else scores.absent).append(bool(found.any()) == bool(phrase.objects))
        if not phrase.objects:
            continue
        pair = np.count_nonzero(found & truth), np.count_nonzero(found | truth)
        kind = scores.kinds.setdefault(phrase.kind, [0, 0])
        for place, value in enumerate(pair):
            kind[place] += value
        scores.shared, scores.joined = scores.shared + pair[0], scores.joined + pair[1]
        if len(phrase.objects) == 1:
            scores.mask_boxes.append(float(box_iou(boxed(found), boxed(truth))[0, 0]))
    for phrase in [one for one in drawn.phrases if len(one.objects) == 1][:3]:
        answer = engine.ask(media, say("ask.box", language, rng, phrase=phrase.words[language]))
        given = [region.box for region in parse_boxes(answer.raw_text, media.size) if region.box is not None]
        wanted = drawn.boxes[phrase.objects[0], :1]
        scores.boxes.append(float(box_iou(np.stack(given[:1]), wanted)[0, 0]) if given else 0.0)
    score_questions(engine, drawn, media, language, scores)
    answer = engine.ask(media, say("ask.region", language, rng), regions=[region_of(drawn, 0)])
    thing, said = drawn.things[0], answer.text
    scores.regions.append(
        all(
            any(word.split(" / ")[0] in said for word in vocabulary(language)[key])
            for key in (f"kind.{thing.kind}", f"colour.{thing.colour}")
        )
    )


def score_clip(engine: Engine, drawn: Scene, language: Language, scores: Scores) -> None:
    """J and F of every phrase that means something, and short answers."""
    media = drawn.media
    for phrase, found in asked(engine, drawn, media, language):
        truth = drawn.visible[list(phrase.objects)].any(axis=0)
        (scores.present if phrase.objects else scores.absent).append(bool(found.any()) == bool(phrase.objects))
        if phrase.objects:
            scores.similarity.append(float(region_similarity(found, truth).mean()))
            scores.accuracy.append(float(contour_accuracy(found, truth).mean()))
    score_questions(engine, drawn, media, language, scores)


def score_questions(engine: Engine, drawn: Scene, media: Media, language: Language, scores: Scores) -> None:
    """Every question of a scene; only the very words of the right answer are right."""
    dialogues = [[Message.user(question.words[language], media)] for question in drawn.questions]
    answers = [engine.answer(messages) for messages in dialogues]
    for question, answer in zip(drawn.questions, answers, strict=True):
        scores.answers.setdefault(question.kind, []).append(answer.text == question.answers[language])


def asked(
    engine: Engine, drawn: Scene, media: Media, language: Language
) -> Iterator[tuple[Phrase, Bool[np.ndarray, "t h w"]]]:
    """Every phrase of the scene, and all that the model found for it."""
    phrases = {phrase.words[language]: phrase for phrase in drawn.phrases}
    answer = next(event.answer for event in engine.segment(media, list(phrases)) if isinstance(event, Finished))
    found = {words: np.zeros(drawn.visible.shape[1:], bool) for words in phrases}
    for region in answer.regions:
        if region.masks is not None:
            found[region.phrase] |= np.stack([region.masks.dense(frame) for frame in range(len(region.masks))])
    for words, phrase in phrases.items():
        yield phrase, found[words]


def boxed(masks: Bool[np.ndarray, "t h w"]) -> Float[np.ndarray, "1 4"]:
    """The box around the first mask; an empty one if nothing is there."""
    box = box_of(masks[0])
    return np.zeros((1, 4)) if box is None else box[None]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


if __name__ == "__main__":
    main()
