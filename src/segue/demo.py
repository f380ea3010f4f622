"""Scenes whose truth is known, to show a model at work on.

Letters in shapes: t frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from segue.geometry.masks import iou
from segue.synth import Phrase, Scene, clip, scene

SCENE_SIZE, CLIP_SIZE, CLIP_FRAMES = (300, 400), (240, 320), 10
FRAME_RATE = 10.0


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

    def write_truth(self, folder: Path) -> Path:
        """Write what a perfect answer would look like, a still as a PNG, a clip as an MP4; returns its path.

        Raises: MediaError, if it cannot be written.
        """
        from segue.output.export import OverlayWriter, write_png
        from segue.output.render import overlay

        labels = [phrase.words["en"] for phrase in self.phrases]
        masks = np.stack([self.truth(phrase) for phrase in self.phrases])
        drawn = (overlay(pixels, masks[:, frame], labels) for frame, pixels in enumerate(self.scene.frames))
        if not self.scene.is_clip:
            write_png(folder / f"{self.name}.png", next(drawn))
            return folder / f"{self.name}.png"
        with OverlayWriter(folder / f"{self.name}.mp4", FRAME_RATE, self.scene.size) as writer:
            for frame in drawn:
                writer.write(frame)
        return folder / f"{self.name}.mp4"


def challenges(seed: int) -> tuple[Challenge, Challenge]:
    """A still and a clip that no training has seen, with phrases in English: about three for one thing, one for none.

    Raises: ConfigError, for a seed outside 0 to 2^32 - 1.
    """
    still = scene(seed, 0, split="test", size=SCENE_SIZE, things=(4, 6))
    moving = clip(seed, 0, split="test", size=CLIP_SIZE, frames=CLIP_FRAMES, things=(3, 4))
    return (
        Challenge("scene", still, tuple(_chosen(still))),
        Challenge("clip", moving, tuple(_chosen(moving))),
    )


def _chosen(drawn: Scene) -> Iterator[Phrase]:
    """Three phrases for one thing each, of different things and, if there are, of different kinds; one for none."""
    waiting = [phrase for phrase in drawn.phrases if len(phrase.objects) == 1]
    kinds: set[str] = set()
    things: set[int] = set()
    while waiting and len(things) < 3:
        phrase = min(waiting, key=lambda phrase: phrase.kind in kinds)
        yield phrase
        kinds.add(phrase.kind)
        things.add(phrase.objects[0])
        waiting = [phrase for phrase in waiting if phrase.objects[0] not in things]
    yield from [phrase for phrase in drawn.phrases if not phrase.objects][:1]
