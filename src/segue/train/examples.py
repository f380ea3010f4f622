"""Samples as rows to learn from, and rows as batches. Everything here runs in data workers, on the CPU.

The prompt is built by `segue.prepare`, as for inference. Masks are brought to the square that SAM 2 sees, with grey
levels where a pixel lies half inside, so that thin things keep their place.

Letters in shapes: s tokens, n objects, t frames, q the side of SAM 2's square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from segue import prepare
from segue.encoder import Key, sampling
from segue.errors import DataError
from segue.features import FeatureCache
from segue.geometry.masks import box_of
from segue.grounding.sam2 import frame_square
from segue.media import read_frames
from segue.media.sampling import choose
from segue.models.protocol import Batch, Processor, VisionInput
from segue.types import Frames, MaskTrack, Media, Message, Sample


@dataclass(frozen=True, slots=True)
class Truth:
    """What the masks of a row are to be: frames as SAM 2 sees them, and how much of each pixel is object (0 to 255).

    Objects stand in the order of their `[SEG]`s. On the frames at the places `prompted` they are found by prompt, on
    the others followed by memory. `numbers` are the frames' numbers in their medium. `phrases` are what the annotation
    calls the objects, and `centres` (x, y) where their boxes lie on each frame, in [0, 1]; NaN where nothing is seen.
    """

    frames: UInt8[Tensor, "t 3 q q"]
    masks: UInt8[Tensor, "n t q q"]
    prompted: tuple[int, ...]
    numbers: tuple[int, ...]
    phrases: tuple[str, ...]
    centres: Float[Tensor, "n t 2"]


def frame_keys(key: Key) -> list[Key]:
    """The keys under which features of a training sample's medium are kept: an image's own, a video's frame by frame,
    for each epoch may show others of them.
    """
    source, rule = key
    if rule.startswith("tiles:"):
        return [key]
    numbers, space, window = rule.partition(" ")
    return [(source, f"{number}{space}{window}") for number in numbers.split(",")]


@dataclass(frozen=True, slots=True)
class ShownMedium:
    """A medium of a batch whose tower states were kept (`states`), or are to be (`pixels`)."""

    key: Key
    pixels: Float[Tensor, "p ..."] | None
    states: Float[Tensor, "q ..."] | None
    grids: Int[Tensor, "i 2"] | None


@dataclass(frozen=True, slots=True)
class TrainRow:
    """A sample ready for a batch; `truth` is None if it points at nothing."""

    id: str
    example: prepare.TokenizedExample
    truth: Truth | None


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Rows of tokens, and the truth of each; None for a row that points at nothing."""

    batch: Batch
    truths: tuple[Truth | None, ...]
    shown: tuple[ShownMedium, ...] = ()
    """With a feature cache, what the rows show; the batch itself then has neither pixels nor states."""

    @property
    def tokens(self) -> int:
        """How many tokens of the batch are to be learned."""
        labels = self.batch.labels
        return 0 if labels is None else int((labels != prepare.IGNORED).sum())

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on a device."""
        parts = [part.to(device) for part in _parts(self.truths)]
        return _whole(self.batch.to(device), parts, _shells(self.truths), self.shown)

    def __reduce__(self) -> tuple[Callable[..., TrainBatch], tuple[Any, ...]]:
        # between processes each tensor costs its own handshake, so the truths of all rows go as three
        return _whole, (self.batch, _parts(self.truths), _shells(self.truths), self.shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMaker:
    """Makes rows of samples; can be sent to worker processes.

    `side` is that of SAM 2's square; None, for a model without a grounder. Of a video sample's frames the language
    model is shown those that the plan `frames` takes of them (see `segue.media.sampling.choose`); on the others objects
    are followed by memory, as at inference. Without a plan all are shown. Whole turns are dropped from the end of a
    dialogue until it has at most `max_tokens`. What `features` has of a medium is taken from there; then only a
    grounder's frames are decoded.
    """

    processor: Processor
    side: int | None
    max_tokens: int = 8192
    max_tiles: int = 12
    frames: str | None = None
    features: FeatureCache | None = None
    _layouts: dict[object, VisionInput] = field(default_factory=dict)

    def __call__(self, sample: Sample) -> TrainRow:
        """The row of a sample.

        Raises: DataError, if the sample has masks and the model no grounder, the first turn alone is too long, or what
            is left points at nothing that the sample pointed at; MediaError and LimitError, as decoding does.
        """
        if sample.regions and self.side is None:
            raise DataError(
                f"{sample.id} has masks, and the model has no grounder that could learn them; give data that is "
                "answered in words, or a model with a grounder"
            )
        media = sample.target_media
        if media is None:
            return TrainRow(sample.id, self._fitting(sample, None)[0], None)
        frames = (0,) if media.kind == "image" else sample.frames
        prompted = tuple(range(len(frames)))
        if self.frames is not None and prompted:
            prompted = tuple(dict.fromkeys(choose(self.frames, len(prompted))))
        plan = tuple(frames[place] for place in prompted)
        key = self._key(media, plan)
        view = None if key is None else self._kept(media, plan, key)
        if view is not None and not sample.regions:
            return TrainRow(sample.id, self._fitting(sample, view)[0], None)
        # the grounder sees all frames, the language model some of them: each is decoded once for both
        decoded = read_frames(media, frames if sample.regions else plan)
        if view is None:
            shown = decoded
            if len(decoded.index) > len(plan):
                at = list(prompted)
                shown = Frames(decoded.pixels[at], decoded.index[at], decoded.seconds[at])
            view = prepare.preprocess_frames(media, shown, plan, self.processor, max_tiles=self.max_tiles, key=key)
        example, count = self._fitting(sample, view)
        return TrainRow(sample.id, example, self._truth(sample, decoded, count, prompted) if count else None)

    def _key(self, media: Media, plan: tuple[int, ...]) -> Key | None:
        if self.features is None:
            return None
        rule = sampling(media, frames=",".join(map(str, plan)), max_tiles=self.max_tiles)
        return self.features.sources.hash(media), rule

    def _kept(self, media: Media, plan: tuple[int, ...], key: Key) -> prepare.MediaInput | None:
        """A medium whose states are all kept; a black one of its size says how it is laid out."""
        assert self.features is not None
        found = [self.features.get(*part) for part in frame_keys(key)]
        states = [one.values for one in found if one is not None]
        if len(states) < len(found):
            return None
        case = media.kind, media.size, len(plan)
        if case not in self._layouts:
            black = Frames(np.zeros((len(plan), *media.size, 3), np.uint8), np.array(plan), np.zeros(len(plan)))
            vision = prepare.preprocess_frames(media, black, plan, self.processor, max_tiles=self.max_tiles).vision
            self._layouts[case] = replace(vision, pixels=None)
        return prepare.MediaInput(media, replace(self._layouts[case], states=torch.cat(states)), plan, key)

    def _fitting(self, sample: Sample, view: prepare.MediaInput | None) -> tuple[prepare.TokenizedExample, int]:
        """The longest beginning of the dialogue that is short enough, and how many regions it points at."""
        messages: Sequence[Message] = sample.messages
        what = "tokens before its first answer ends"
        while messages:
            example = prepare.prepare(
                messages, self.processor, media=[] if view is None else [view], max_tiles=self.max_tiles
            )
            count = 0 if self.processor.seg_id is None else int((example.labels == self.processor.seg_id).sum())
            if len(example.ids) <= self.max_tokens:
                if not sample.regions or count:
                    return example, count
                what = "tokens before it points at anything"
                break
            messages = messages[:-2]
        raise DataError(
            f"{sample.id} has more than {self.max_tokens} {what}; "
            "allow more tokens, or show it in fewer tiles or frames"
        )

    def _truth(self, sample: Sample, decoded: Frames, count: int, prompted: tuple[int, ...]) -> Truth:
        assert self.side is not None
        tracks = [region.masks for region in sample.regions[:count] if region.masks is not None]
        # one thing may be asked for in many turns
        known = {track.rles: _masks_of(track, len(sample.frames), self.side) for track in tracks}
        return Truth(
            torch.stack([frame_square(frame, self.side) for frame in decoded.pixels]),
            torch.stack([known[track.rles][0] for track in tracks]),
            prompted,
            sample.frames,
            tuple(region.phrase for region in sample.regions[:count]),
            torch.stack([known[track.rles][1] for track in tracks]),
        )


def _masks_of(track: MaskTrack, frames: int, side: int) -> tuple[UInt8[Tensor, "t q q"], Float[Tensor, "t 2"]]:
    """An object's masks on SAM 2's square, and their centres."""
    masks = [track.dense(place) for place in range(frames)]
    centres = np.stack([centre(mask) for mask in masks])
    return torch.stack([covered(mask, side) for mask in masks]), torch.from_numpy(centres).float()


_Shell = tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[str, ...]]


def _parts(truths: Sequence[Truth | None]) -> list[Tensor]:
    """Frames, masks and centres of all truths, one after another."""
    known = [truth for truth in truths if truth is not None]
    if not known:
        return []
    masks, centres = ([getattr(truth, name).flatten(0, 1) for truth in known] for name in ("masks", "centres"))
    return [torch.cat([truth.frames for truth in known]), torch.cat(masks), torch.cat(centres)]


def _shells(truths: Sequence[Truth | None]) -> list[_Shell | None]:
    """What remains of truths without their tensors: how many objects and frames, and all that is no tensor."""
    return [None if truth is None else _shell(truth) for truth in truths]


def _shell(truth: Truth) -> _Shell:
    return len(truth.masks), len(truth.frames), truth.prompted, truth.numbers, truth.phrases


def _whole(
    batch: Batch, parts: Sequence[Tensor], shells: Sequence[_Shell | None], shown: tuple[ShownMedium, ...]
) -> TrainBatch:
    """The batch of parts and shells; the truths' tensors are views of the parts."""
    counts = [shell[:2] for shell in shells if shell is not None]
    frames, masks, centres = (
        iter(part.split([times if number == 0 else objects * times for objects, times in counts]))
        for number, part in enumerate(parts or [torch.zeros(0)] * 3)
    )
    truths: list[Truth | None] = []
    for shell in shells:
        if shell is None:
            truths.append(None)
            continue
        objects, times, prompted, numbers, phrases = shell
        shape = (objects, times)
        truths.append(
            Truth(
                next(frames),
                next(masks).unflatten(0, shape),
                prompted,
                numbers,
                phrases,
                next(centres).unflatten(0, shape),
            )
        )
    return TrainBatch(batch, tuple(truths), shown)


def centre(mask: np.ndarray) -> Float[np.ndarray, " 2"]:
    """Of the box around a mask, x and y in [0, 1]; NaN if the mask is empty."""
    box = box_of(mask)
    return np.full(2, np.nan) if box is None else (box[:2] + box[2:]) / 2 / mask.shape[::-1]


def covered(mask: np.ndarray, side: int) -> UInt8[Tensor, "q q"]:
    """How much of each pixel of the square is inside the mask, 0 to 255."""
    whole = torch.from_numpy(mask)[None, None].float()
    return (functional.interpolate(whole, (side, side), mode="area")[0, 0] * 255).round().to(torch.uint8)


def collate(rows: Sequence[TrainRow], processor: Processor) -> TrainBatch:
    """Rows to a batch."""
    examples, truths = [row.example for row in rows], tuple(row.truth for row in rows)
    known = {one.key: one.vision for example in examples for one in example.media if one.key is not None}
    bare = [
        replace(example, media=tuple(replace(one, vision=_bare(one)) for one in example.media)) for example in examples
    ]
    shown = tuple(ShownMedium(key, one.pixels, one.states, one.grids) for key, one in known.items())
    return TrainBatch(prepare.collate(bare, processor), truths, shown)


def _bare(medium: prepare.MediaInput) -> VisionInput:
    return medium.vision if medium.key is None else replace(medium.vision, pixels=None, states=None)
