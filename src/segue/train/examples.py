"""Samples as rows to learn from, and rows as batches. Everything here runs in data workers, on the CPU.

The prompt is built by `segue.prepare`, as for inference. Masks are brought to the square that SAM 2 sees, with grey
levels where a pixel lies half inside, so that thin things keep their place.

Letters in shapes: s tokens, n objects, t frames, q the side of SAM 2's square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from segue import prepare
from segue.errors import DataError
from segue.grounding.sam2 import frame_square
from segue.media import read_frames, read_image
from segue.media.sampling import choose
from segue.models.base import Batch, Processor
from segue.types import Frames, Media, Message, Sample


@dataclass(frozen=True, slots=True)
class Truth:
    """What the masks of a row are to be: frames as SAM 2 sees them, and how much of each pixel is object (0 to 255).

    Objects stand in the order of their `[SEG]`s. On the frames at the places `asked` they are asked for by prompt, on
    the others followed by memory. `numbers` are the frames' numbers in their medium. `phrases` are what the annotation
    calls the objects, and `centres` (x, y) where their boxes lie in the first frame that shows them, in [0, 1].
    """

    frames: UInt8[Tensor, "t 3 q q"]
    masks: UInt8[Tensor, "n t q q"]
    asked: tuple[int, ...]
    numbers: tuple[int, ...]
    phrases: tuple[str, ...]
    centres: Float[Tensor, "n 2"]


@dataclass(frozen=True, slots=True)
class Row:
    """A sample ready for a batch; `truth` is None if it points at nothing."""

    id: str
    example: prepare.Example
    truth: Truth | None


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Rows of tokens, and the truth of each; None for a row that points at nothing."""

    batch: Batch
    truths: tuple[Truth | None, ...]

    @property
    def tokens(self) -> int:
        """How many tokens of the batch are to be learned."""
        labels = self.batch.labels
        return 0 if labels is None else int((labels != prepare.IGNORED).sum())

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on a device."""
        truths = tuple(truth and _on(truth, device) for truth in self.truths)
        return TrainBatch(self.batch.to(device), truths)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMaker:
    """Makes rows of samples; can be sent to worker processes.

    `side` is that of SAM 2's square. Of a video sample's frames the language model is shown those that the plan
    `frames` takes of them (see `segue.media.sampling.choose`); on the others objects are followed by memory, as at
    inference. Without a plan all are shown. Whole turns are dropped from the end of a dialogue until it has at most
    `max_tokens`.
    """

    processor: Processor
    side: int
    max_tokens: int = 8192
    max_tiles: int = 12
    frames: str | None = None

    def __call__(self, sample: Sample) -> Row:
        """The row of a sample.

        Raises: DataError, if the first turn alone is too long or what is left points at nothing that the sample
            pointed at; MediaError and LimitError, as decoding does.
        """
        media = next((part for message in sample.messages for part in message.parts if isinstance(part, Media)), None)
        asked = tuple(range(len(sample.frames)))
        if self.frames is not None and asked:
            asked = tuple(dict.fromkeys(choose(self.frames, len(asked))))
        view = None
        if media is not None:
            plan = ",".join(str(sample.frames[place]) for place in asked)
            view = prepare.look(media, self.processor, frames=plan, max_tiles=self.max_tiles)
        example, count = self._fitting(sample, view)
        if not count or media is None:
            return Row(sample.id, example, None)
        return Row(sample.id, example, self._truth(sample, media, count, asked))

    def _fitting(self, sample: Sample, view: prepare.View | None) -> tuple[prepare.Example, int]:
        """The longest beginning of the dialogue that is short enough, and how many regions it points at."""
        messages: Sequence[Message] = sample.messages
        while messages:
            example = prepare.prepare(messages, self.processor, view=view, max_tiles=self.max_tiles)
            count = int((example.labels == self.processor.seg_id).sum())
            if len(example.ids) <= self.max_tokens:
                if sample.regions and not count:
                    break
                return example, count
            messages = messages[:-2]
        raise DataError(
            f"{sample.id} has more than {self.max_tokens} tokens before its first answer ends; "
            "allow more tokens, or show it in fewer tiles or frames"
        )

    def _truth(self, sample: Sample, media: Media, count: int, asked: tuple[int, ...]) -> Truth:
        if media.kind == "image":
            shown = Frames(read_image(media)[None], np.zeros(1, np.int64), np.zeros(1))
        else:
            shown = read_frames(media, sample.frames)
        tracks = [region.masks for region in sample.regions[:count]]
        masks = [
            torch.stack([_covered(track.dense(place), self.side) for place in range(len(sample.frames))])
            for track in tracks
            if track is not None
        ]
        regions, (height, width) = sample.regions[:count], media.size
        boxes = [np.zeros(4) if region.box is None else region.box for region in regions]
        centres = np.stack([(box[:2] + box[2:]) / 2 / (width, height) for box in boxes])
        return Truth(
            torch.stack([frame_square(frame, self.side) for frame in shown.pixels]),
            torch.stack(masks),
            asked,
            sample.frames,
            tuple(region.phrase for region in regions),
            torch.from_numpy(centres).float(),
        )


def _on(truth: Truth, device: torch.device) -> Truth:
    frames, masks, centres = (tensor.to(device) for tensor in (truth.frames, truth.masks, truth.centres))
    return replace(truth, frames=frames, masks=masks, centres=centres)


def _covered(mask: np.ndarray, side: int) -> UInt8[Tensor, "q q"]:
    """How much of each pixel of the square is inside the mask, 0 to 255."""
    whole = torch.from_numpy(mask)[None, None].float()
    return (functional.interpolate(whole, (side, side), mode="area")[0, 0] * 255).round().to(torch.uint8)


def collate(rows: Sequence[Row], processor: Processor) -> TrainBatch:
    """Rows to a batch."""
    return TrainBatch(prepare.collate([row.example for row in rows], processor), tuple(row.truth for row in rows))
