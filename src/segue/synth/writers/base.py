"""What the writers of all forms share: what they are given, what they say of themselves, and files.

A writer takes drawings as they come, so that only one is in memory, and writes below an empty folder. What belongs into
a text file is gathered meanwhile: words and run lengths are small beside pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, UInt8

from segue.data.prompts import clean_phrase
from segue.files import atomic_path
from segue.geometry import masks
from segue.output.export import OverlayWriter, write_png
from segue.synth.scenes import Scene, Split
from segue.synth.vessels import PHRASE, Vessels
from segue.synth.wording import Language

Holds = Literal["marks", "stills", "clips"]
Drawing = Scene | Vessels
Write = Callable[[Path, "Order", Iterator[Drawing]], None]

FRAME_RATE = 24.0
"""Frames per second of clips that are written as video files, as SA-V's are."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written beside the drawings themselves: the split they are of, and languages, words in each."""

    split: Split
    languages: tuple[Language, ...]

    @property
    def folder_split(self) -> str:
        """The split as "my folder" calls it."""
        return "val" if self.split == "validation" else self.split


@dataclass(frozen=True, slots=True)
class Format:
    """A form on disk: how it is written, which dataset reads it, and with which options.

    `holds` says what can be written so: "marks" are images with phrases and masks (stills and vessels), else scenes
    that are stills or clips. `even` says that sides must be even, and `least_frames` how many frames a clip needs.
    """

    write: Write
    holds: Holds
    dataset: str
    options: tuple[tuple[str, Any], ...] = ()
    even: bool = False
    least_frames: int = 4


@dataclass(frozen=True, slots=True)
class Marked:
    """An image, what is marked on it by phrase, and phrases that fit nothing on it; phrases as datasets clean them."""

    name: str
    group: str
    pixels: UInt8[np.ndarray, "h w 3"]
    objects: tuple[tuple[str, Bool[np.ndarray, "h w"]], ...]
    absent: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """A name for its file, in a folder of its group where that has more than this image."""
        return f"{self.name}.png" if self.group == self.name else f"{self.group}/{self.name}.png"


def marked(drawing: Drawing, languages: Sequence[Language]) -> Marked:
    """A still or vessels as an image with marks; a phrase that means several things has all of them as one mask."""
    if isinstance(drawing, Vessels):
        objects = tuple((PHRASE[language], drawing.mask) for language in languages)
        return Marked(drawing.name, drawing.group, drawing.pixels, objects)
    found: dict[str, np.ndarray] = {}
    absent: dict[str, None] = {}
    for phrase in drawing.phrases:
        for language in languages:
            words = clean_phrase(phrase.words[language])
            if phrase.objects:
                found.setdefault(words, union(drawing, phrase.objects)[0])
            else:
                absent.setdefault(words)
    return Marked(drawing.group, drawing.group, drawing.frames[0], tuple(found.items()), tuple(absent))


def union(scene: Scene, things: Sequence[int]) -> Bool[np.ndarray, "t h w"]:
    """All that is seen of some things of a scene."""
    seen: np.ndarray = np.any(scene.visible[list(things)], axis=0)
    return seen


def rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask as a COCO run-length object."""
    return {"size": list(mask.shape), "counts": masks.encode(mask)}


def write_json(path: Path, content: object) -> None:
    """Write a JSON file and the folders above it.

    Raises: MediaError, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_image(path: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an image as PNG, which keeps every pixel, and the folders above it.

    Raises: MediaError, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels)


def write_frames(folder: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> list[str]:
    """Write a clip as a folder of numbered PNG pictures; returns their names without the ending.

    Raises: MediaError, if they cannot be written.
    """
    names = [f"{number:05d}" for number in range(len(frames))]
    for name, pixels in zip(names, frames, strict=True):
        write_image(folder / f"{name}.png", pixels)
    return names


def write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    """Write a clip as MP4, and the folders above it; an odd side grows by a pixel.

    Raises: MediaError, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with OverlayWriter(path, FRAME_RATE, (frames.shape[1], frames.shape[2])) as writer:
        for pixels in frames:
            writer.write(pixels)


def scenes(drawings: Iterator[Drawing]) -> Iterator[Scene]:
    """The drawings, which are all scenes."""
    for drawing in drawings:
        assert isinstance(drawing, Scene), "vessels go into forms that hold marks only"
        yield drawing


def conversation(scene: Scene, language: Language, placeholder: str) -> list[dict[str, str]]:
    """A scene's questions and answers as LLaVA writes them, the placeholder before the first."""
    turns: list[dict[str, str]] = []
    for question in scene.questions:
        asked = question.words[language]
        turns.append({"from": "human", "value": asked if turns else f"{placeholder}\n{asked}"})
        turns.append({"from": "gpt", "value": question.answers[language]})
    return turns
