"""What can be evaluated without a model: one that finds what is bright, and one that knows what to say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from segue.errors import DataError
from segue.evals.metrics.own_masks import THRESHOLDS
from segue.evals.run.answer_store import StoredAnswer
from segue.geometry.masks import track
from segue.media import read_frames
from segue.types import Answer, MaskTrack, Media, Message, Region, Sample

SIZE = (16, 24)


def write_folder(root: Path, images: int = 6, *, split: str = "test") -> Path:
    """Images of several patients with a bright square of another place in each, and the mask of that square."""
    for number in range(images):
        pixels = np.zeros((*SIZE, 3), np.uint8)
        pixels[2 : 8 + number, 2 * number : 2 * number + 8] = 200
        for kind, picture in (("images", pixels), ("masks", (pixels[..., 0] > 100).astype(np.uint8) * 255)):
            path = root / split / kind / f"patient{number // 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return root


@dataclass
class Bright:
    """Answers every question with what is brighter than a level; a question with a word of `broken` cannot be asked.

    `asked` holds the questions of each time it was asked.
    """

    level: int = 100
    name: str = "bright"
    broken: tuple[str, ...] = ()
    model: ClassVar = SimpleNamespace(grounder=SimpleNamespace())
    asked: list[list[str]] = field(default_factory=list)

    @property
    def lineage(self) -> dict[str, Any]:
        return {"model": self.name, "model_hash": f"{self.name}-{self.level}", "dtype": "float32", "device": "cpu"}

    def answer_all(self, dialogues: Sequence[Sequence[Message]], options: object, *, rows: int) -> list[Answer]:
        texts = [messages[-1].text for messages in dialogues]
        self.asked.append(texts)
        if wrong := [text for text in texts if any(word in text for word in self.broken)]:
            raise DataError(f"cannot ask {wrong[0]!r}")
        return [self._answer(messages) for messages in dialogues]

    def _answer(self, messages: Sequence[Message]) -> Answer:
        media = next(part for part in messages[0].parts if isinstance(part, Media))
        assert isinstance(media.source, np.ndarray), "pixels are decoded ahead"
        frames = read_frames(media, range(media.count))
        found = track(frames.pixels[..., 0] > self.level, frames.index)
        scanned: dict[float, list[MaskTrack | None]] = {threshold: [found] for threshold in THRESHOLDS}
        request = {"policy": None, "frames": None, "frames_shown": None, "prompts": [messages[-1].text]}
        return StoredAnswer(
            "Sure.", (Region(masks=found),), "Sure [SEG].", media, lineage={"request": request}, scanned=scanned
        )


@dataclass
class Oracle:
    """Says what `speak` makes of each sample; `samples` come in the order in which they are asked."""

    samples: list[Sample]
    speak: Callable[[Sample], Answer]
    lineage: dict[str, Any] = field(default_factory=lambda: {"model": "oracle", "model_hash": "0", "dtype": "none"})

    def answer_all(self, dialogues: Sequence[Sequence[Message]], options: object, *, rows: int) -> list[Answer]:
        mine, self.samples = self.samples[: len(dialogues)], self.samples[len(dialogues) :]
        for sample, dialogue in zip(mine, dialogues, strict=True):
            assert [message.text for message in sample.messages[:-1]] == [message.text for message in dialogue]
        return [self.speak(sample) for sample in mine]

    def score(self, messages: Sequence[Message], answers: Sequence[str], options: object) -> list[float]:
        (said,) = self.answer_all([messages], options, rows=1)
        return [0.0 if answer == f" {said.text}" else -1.0 for answer in answers]


@dataclass
class Recorded:
    """Remembers what it was told."""

    started: list[tuple[int, int]] = field(default_factory=list)
    steps: list[str | None] = field(default_factory=list)

    def start(self, total: int, done: int = 0) -> None:
        self.started.append((total, done))

    def step(self, failure: str | None = None) -> None:
        self.steps.append(failure)
