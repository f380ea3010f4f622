"""Scenes whose truth is known, to show a model at work on.

Letters in shapes: t frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from segue.geometry.masks import iou
from segue.synth import Phrase, Scene, clip, scene
from segue.synth.meaning import Noun, Query
from segue.synth.phrases import PhraseKind

SCENE_SIZE, CLIP_SIZE, CLIP_FRAMES = (300, 400), (240, 320), 10
FRAME_RATE = 10.0

Ask = Callable[[Phrase], bool]
"""Whether a phrase is one of a kind that the demo shows."""


def _names_kind(phrase: Phrase) -> bool:
    return len(phrase.objects) == 1 and phrase.query == Query(Noun(kind=phrase.query.noun.kind))


def _one(*kinds: PhraseKind) -> Ask:
    return lambda phrase: len(phrase.objects) == 1 and phrase.kind in kinds and not _names_kind(phrase)


def _is_missing(phrase: Phrase) -> bool:
    return phrase.kind == "attribute" and not phrase.objects


STILL_ASKS: Mapping[str, Ask] = {
    "a thing": _names_kind,
    "an attribute": _one("attribute"),
    "a relation": _one("relation"),
    "not there": _is_missing,
}
"""What is asked of the demo's still: a thing by its kind alone, one by what it looks like, one by where it is from
another, and one that is not there."""
CLIP_ASKS: Mapping[str, Ask] = {"an attribute": _one("attribute"), "a motion": _one("motion", "event")}
"""What is asked of the demo's clip: a thing by what it looks like, another by what it does or what happens to it."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """A scene and what is asked about it; `name` is what its files are called."""

    name: str
    scene: Scene
    phrases: tuple[Phrase, ...]

    def truth(self, phrase: Phrase) -> Bool[np.ndarray, "t h w"]:
        """All that a phrase means, as one mask per frame."""
        union: np.ndarray = np.any(self.scene.visible[list(phrase.objects)], axis=0)
        return union

    def score(self, phrase: Phrase, found: Bool[np.ndarray, "t h w"]) -> float:
        """How well what was found covers what was meant: IoU, the mean over frames; nothing found of nothing is 1."""
        return float(np.mean([iou(*pair) for pair in zip(self.truth(phrase), found, strict=True)]))

    def write(self, folder: Path) -> Path:
        """Write the pixels into a folder: a still as a PNG, a clip as a folder of numbered ones; returns its path.

        Raises: MediaError, if they cannot be written.
        """
        from segue.output.export import write_png

        if not self.scene.is_clip:
            write_png(folder / f"{self.name}.png", self.scene.frames[0])
            return folder / f"{self.name}.png"
        (folder / self.name).mkdir(exist_ok=True)
        for number, frame in enumerate(self.scene.frames):
            write_png(folder / self.name / f"{number:05d}.png", frame)
        return folder / self.name

    def compare(self, found: Mapping[str, Bool[np.ndarray, "t h w"]], folder: Path) -> Path:
        """Write truth and answer side by side, a still as a PNG, a clip as an MP4; returns its path.

        `found` holds what was found by the phrase's English words; what is missing there was not found. Every phrase
        has a colour of its own, and below the pictures a line that says what was there, what was found and the score.

        Raises: MediaError, if it cannot be written.
        """
        from segue.output.export import OverlayWriter, write_png
        from segue.output.render import side_by_side

        nothing = np.zeros(self.scene.frames.shape[:3], dtype=bool)
        answers = [found.get(phrase.words["en"], nothing) for phrase in self.phrases]
        truths = [self.truth(phrase) for phrase in self.phrases]
        legend = [
            f"{phrase.words['en']}: {_told(phrase, answer)}, IoU {self.score(phrase, answer):.2f}"
            for phrase, answer in zip(self.phrases, answers, strict=True)
        ]
        shown = {"truth": np.stack(truths), "answer": np.stack(answers)}
        drawn = (
            side_by_side(pixels, {title: masks[:, frame] for title, masks in shown.items()}, legend)
            for frame, pixels in enumerate(self.scene.frames)
        )
        if not self.scene.is_clip:
            write_png(folder / f"{self.name}.png", next(drawn))
            return folder / f"{self.name}.png"
        first = next(drawn)
        with OverlayWriter(folder / f"{self.name}.mp4", FRAME_RATE, first.shape[:2]) as writer:
            for frame in (first, *drawn):
                writer.write(frame)
        return folder / f"{self.name}.mp4"


def challenges(seed: int) -> tuple[Challenge, Challenge]:
    """A still and a clip that no training has seen, with phrases in English.

    Scenes of the test split under this seed are gone through from the first on. The still is the first one with a
    phrase for each of `STILL_ASKS`, the clip the first one with one for each of `CLIP_ASKS`; of several phrases that
    fit, the first counts, and no two mean the same thing. Nothing else chooses, and no model is asked.

    Raises: ConfigError, for a seed outside 0 to 2^32 - 1.
    """
    still = _first(lambda index: scene(seed, index, split="test", size=SCENE_SIZE, things=(4, 6)), STILL_ASKS)
    moving = _first(
        lambda index: clip(seed, index, split="test", size=CLIP_SIZE, frames=CLIP_FRAMES, things=(3, 4)), CLIP_ASKS
    )
    return Challenge("scene", *still), Challenge("clip", *moving)


def _first(draw: Callable[[int], Scene], asks: Mapping[str, Ask]) -> tuple[Scene, tuple[Phrase, ...]]:
    """The first scene that has a phrase for every ask, and these phrases."""
    for index in count():
        drawn = draw(index)
        if phrases := _chosen(drawn.phrases, tuple(asks.values())):
            return drawn, phrases
    raise AssertionError("count() never ends")


def _chosen(phrases: Sequence[Phrase], asks: Sequence[Ask]) -> tuple[Phrase, ...] | None:
    """The first phrase for each ask, none about a thing that was asked for before; None if there are not all."""
    chosen: list[Phrase] = []
    for ask in asks:
        taken = {number for phrase in chosen for number in phrase.objects}
        fitting = (phrase for phrase in phrases if ask(phrase) and not taken.intersection(phrase.objects))
        phrase = next(fitting, None)
        if phrase is None:
            return None
        chosen.append(phrase)
    return tuple(chosen)


def _told(phrase: Phrase, answer: Bool[np.ndarray, "t h w"]) -> str:
    """What a phrase means and whether anything was found, in a few words."""
    meant, is_found = len(phrase.objects), bool(answer.any())
    there = "not there" if not meant else "there" if meant == 1 else f"{meant} there"
    return f"{there}, {'found' if is_found else 'not found'}"
