"""An engine that tells the truth without a model: an object is where pixels have the brightness its phrase asks for.

It keeps the contract of segue.engine and segue.loading and can stand in its place in `sys.modules`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from segue.errors import CheckpointError, DataError
from segue.geometry import masks, notation
from segue.media import iter_frames
from segue.options import DEFAULTS, Options
from segue.types import (
    Answer,
    Event,
    Finished,
    FrameMasks,
    MaskTrack,
    Media,
    Message,
    ObjectsFound,
    Region,
    TextDelta,
    Usage,
)

BRIGHTNESS = {"bright": (128, 255), "dark": (0, 127), "white": (250, 255)}


class Engine:
    """`loads` counts how often any was made."""

    loads = 0
    model = SimpleNamespace(family=SimpleNamespace(parse=notation.parse))
    lineage: dict[str, Any] = {"model": "fake", "dtype": "float32"}

    def stream_answer(
        self, messages: Sequence[Message], options: Options = DEFAULTS, *, last_prompt: object = None
    ) -> Iterator[Event]:
        """Say which turn it is and find the words of BRIGHTNESS that the last message names, if there is a medium."""
        media = next((part for message in messages for part in message.parts if isinstance(part, Media)), None)
        asked = [word for word in BRIGHTNESS if media is not None and word in messages[-1].text]
        yield from self._answer(media, asked, options, f"Turn {len(messages) // 2 + 1}: ")

    def stream_segment(self, media: Media, phrases: Sequence[str], options: Options = DEFAULTS) -> Iterator[Event]:
        if "impossible" in phrases:
            raise DataError("the phrase 'impossible' cannot be asked; ask for something else")
        known = [phrase for phrase in phrases if phrase in BRIGHTNESS]
        for event in self._answer(media, known, options, ""):
            if isinstance(event, Finished) and len(known) < len(phrases):
                told = {**event.answer.lineage, "not_found": [phrase for phrase in phrases if phrase not in known]}
                event = Finished(replace(event.answer, lineage=told))
            yield event

    def _answer(self, media: Media | None, phrases: list[str], options: Options, opening: str) -> Iterator[Event]:
        text = opening
        yield TextDelta(opening)
        regions = []
        for phrase in phrases:
            regions.append(Region(phrase, (len(text), len(text) + len(phrase))))
            text += f"{phrase} [SEG] "
            yield TextDelta(f"{phrase} [SEG] ")
        yield TextDelta("<|im_end|>")
        frames = []
        if regions:
            yield ObjectsFound(media, tuple(regions))
        for index, seconds, pixels in iter_frames(media) if regions else ():
            grey = pixels.mean(axis=2)
            found = [(grey >= low) & (grey <= high) for low, high in map(BRIGHTNESS.__getitem__, phrases)]
            dense = np.array(found)
            scores = dense.mean(axis=(1, 2))
            event = FrameMasks(index, seconds, pixels, dense, scores, dense.any(axis=(1, 2)).astype(float))
            frames.append((index, [masks.encode(mask) for mask in dense], event.scores, event.presence))
            yield event
        done = tuple(_region(region, number, media, frames, options) for number, region in enumerate(regions))
        usage = Usage(encoded_frames=len(frames))
        yield Finished(
            Answer(notation.parse(text, None, None)[0], done, text + "<|im_end|>", media, usage, lineage=self.lineage)
        )


def _region(region: Region, number: int, media: Media, frames: list, options: Options) -> Region:
    track = MaskTrack(
        media.size,
        np.array([index for index, *_ in frames]),
        tuple(rles[number] for _, rles, _, _ in frames),
        np.zeros((len(frames), 4, 4)) if options.keep_logits else None,
    )
    scores = np.array([scores[number] for *_, scores, _ in frames])
    presence = np.array([presence[number] for *_, presence in frames])
    boxes = (masks.box_of(track.dense(position)) for position in range(len(track)))
    box = next((box for box in boxes if box is not None), None)
    return Region(region.phrase, region.span, box, track, float(scores.mean()), scores, presence)


def load(model: str = "demo", **choices: Any) -> Engine:
    if model == "fake/broken":
        raise CheckpointError("broken lacks the tensor a.weight of shape (2, 3); download it again")
    Engine.loads += 1
    return Engine()
