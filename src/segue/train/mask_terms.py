"""The terms of masks: what a grounder predicts for prompts, on frames that are prompted and frames that are tracked.

Letters in shapes: f frames, n objects, m predicted masks, d prompt width, q the side of SAM 2's square, s of
low-resolution masks.

Source: Sa2VA (arXiv 2501.04001), `projects/sa2va/models`; tracking by memory is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.grounding.losses import at_points, dice_loss, mask_loss, uncertain_points
from segue.grounding.sam2 import Decoded, Encoded, LanguageSam2, normalised
from segue.grounding.tracking import VideoMemory, conditioning, step
from segue.train.examples import Truth
from segue.train.recipe import LossWeights

_SHARPNESS = 16.0

PromptedRow = tuple[Truth, Float[Tensor, "_ d"]]
"""A row's truth, and a prompt for each of its objects."""


@dataclass(frozen=True, slots=True)
class MaskPredictions:
    """Masks, their estimates, and what they should have been; frame by frame."""

    logits: Float[Tensor, "m s s"]
    iou: Float[Tensor, " m"]
    presence: Float[Tensor, " m"]
    masks: Float[Tensor, "m q q"]


@dataclass(frozen=True, slots=True)
class _PromptedFrames:
    """Frames with prompts, the same number of objects on each: f is that of all rows together."""

    encoded: Encoded
    prompts: Float[Tensor, "f n d"]
    masks: Float[Tensor, "f n q q"]


@dataclass(frozen=True, slots=True)
class _RowOffsets:
    """Where a row's frames begin among all encoded ones, and its objects among all that were prompted."""

    truth: Truth
    frames: int
    decoded: int
    objects: int


Decode = Callable[[LanguageSam2, Sequence[PromptedRow], Encoded], MaskPredictions]


def mask_terms(
    grounder: LanguageSam2,
    rows: Sequence[PromptedRow],
    weights: LossWeights,
    generator: torch.Generator,
    *,
    num_points: int,
    decode: Decode,
) -> dict[str, Float[Tensor, ""]]:
    """The terms of rows with the same number of objects each; those of no weight are left out, but for masks."""
    encoded = encode_frames(grounder, [truth for truth, _ in rows])
    found = decode(grounder, rows, encoded)
    points = uncertain_points(found.logits, generator, count=num_points)
    predicted, wanted = at_points(found.logits, points), at_points(found.masks, points)
    terms = {"mask": mask_loss(predicted, wanted), "dice": dice_loss(predicted, wanted)}
    if weights.align:
        terms["align"] = _alignment(_prompted_frames(rows, encoded))
    if weights.iou:
        terms["iou"] = functional.mse_loss(found.iou, true_iou(found.logits.detach(), found.masks))
    if weights.presence:
        there = (found.masks > 0.5).flatten(1).any(1).float()
        terms["presence"] = functional.binary_cross_entropy_with_logits(found.presence, there)
    return terms


def encode_frames(grounder: LanguageSam2, truths: Sequence[Truth]) -> Encoded:
    """The frames of all rows, one after another, as SAM 2's image encoder sees them."""
    encoded: Encoded = grounder.encode(normalised(torch.cat([truth.frames for truth in truths])))
    return encoded


def decode_masks(grounder: LanguageSam2, rows: Sequence[PromptedRow], encoded: Encoded) -> MaskPredictions:
    """All objects of all frames, which stand row by row in `encoded`: those prompted, then those tracked."""
    frames = _prompted_frames(rows, encoded)
    decoded = grounder.prompted_each(frames.encoded, frames.prompts)
    found = MaskPredictions(decoded.logits, decoded.iou, decoded.presence, frames.masks.flatten(0, 1))
    return _joined([found, *_tracked(grounder, rows, encoded, decoded)])


def decode_followed(grounder: LanguageSam2, rows: Sequence[PromptedRow], encoded: Encoded) -> MaskPredictions:
    """The objects that are tracked, alone: those that are prompted are found as they would be at inference, and learn
    nothing."""
    frames = _prompted_frames(rows, encoded)
    with torch.no_grad():
        decoded = grounder.prompted_each(frames.encoded, frames.prompts)
    return _joined(list(_tracked(grounder, rows, encoded, decoded)))


def decode_candidates(grounder: LanguageSam2, rows: Sequence[PromptedRow], encoded: Encoded) -> MaskPredictions:
    """All three masks of each object that is prompted: a fresh model does not know yet which of them to choose."""
    frames = _prompted_frames(rows, encoded)
    decoded = grounder.candidates(frames.encoded, frames.prompts)
    masks = frames.masks.flatten(0, 1)
    wanted = masks.repeat_interleave(len(decoded.logits) // len(masks), 0)
    return MaskPredictions(decoded.logits, decoded.iou, decoded.presence, wanted)


def _tracked(
    grounder: LanguageSam2, rows: Sequence[PromptedRow], encoded: Encoded, prompted: Decoded
) -> Iterator[MaskPredictions]:
    """Objects on the frames that the language model was not shown, from memory; rows of the same plan together."""
    plans: dict[tuple[tuple[int, ...], tuple[int, ...]], list[_RowOffsets]] = {}
    first, done = 0, 0
    for truth, prompts in rows:
        if len(truth.prompted) < len(truth.frames):
            offsets = _RowOffsets(truth, first, done, len(prompts))
            plans.setdefault((truth.numbers, truth.prompted), []).append(offsets)
        first, done = first + len(truth.frames), done + len(truth.prompted) * len(prompts)
    for (numbers, places), offsets_of_rows in plans.items():
        frames = [_of_objects(encoded, offsets_of_rows, frame) for frame in range(len(numbers))]
        together = len(frames[0].top)
        memory = VideoMemory(
            tuple(
                conditioning(
                    grounder,
                    numbers[frame],
                    frames[frame],
                    _of_rows(prompted, offsets_of_rows, order),
                    at_once=together,
                )
                for order, frame in enumerate(places)
            )
        )
        for frame in range(len(numbers)):
            if frame in places:
                continue
            decoded, memory = step(grounder, numbers[frame], frames[frame], memory, consistent=False, at_once=together)
            masks = torch.cat([row.truth.masks[:, frame] for row in offsets_of_rows]).float() / 255
            yield MaskPredictions(decoded.logits, decoded.iou, decoded.presence, masks)


def _prompted_frames(rows: Sequence[PromptedRow], encoded: Encoded) -> _PromptedFrames:
    places: list[int] = []
    first = 0
    for truth, _ in rows:
        places += [first + place for place in truth.prompted]
        first += len(truth.frames)
    selected = torch.tensor(places, device=encoded.top.device)
    fine, middle = encoded.fine
    return _PromptedFrames(
        Encoded(encoded.top[selected], (fine[selected], middle[selected]), encoded.position),
        torch.cat([prompts.expand(len(truth.prompted), -1, -1) for truth, prompts in rows]),
        torch.cat([truth.masks[:, list(truth.prompted)].transpose(0, 1) for truth, _ in rows]).float() / 255,
    )


def _of_objects(encoded: Encoded, rows: Sequence[_RowOffsets], frame: int) -> Encoded:
    """The same frame of several rows, once for each of their objects."""
    places = [row.frames + frame for row in rows for _ in range(row.objects)]
    selected = torch.tensor(places, device=encoded.top.device)
    return Encoded(encoded.top[selected], (encoded.fine[0][selected], encoded.fine[1][selected]), encoded.position)


def _of_rows(decoded: Decoded, rows: Sequence[_RowOffsets], order: int) -> Decoded:
    """What was found of all objects of several rows on the prompted frame number `order` of each."""
    starts = [(row.decoded + order * row.objects, row.objects) for row in rows]
    selected = torch.tensor([start + number for start, count in starts for number in range(count)])
    selected = selected.to(decoded.iou.device)
    return Decoded(
        decoded.logits[selected], decoded.iou[selected], decoded.presence[selected], decoded.pointer[selected]
    )


def _joined(parts: Sequence[MaskPredictions]) -> MaskPredictions:
    return MaskPredictions(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.iou for part in parts]),
        torch.cat([part.presence for part in parts]),
        torch.cat([part.masks for part in parts]),
    )


def _alignment(frames: _PromptedFrames) -> Float[Tensor, ""]:
    """How far prompts are from pointing, by their cosines, at the image features that show their object."""
    top = frames.encoded.top
    cells = functional.interpolate(frames.masks, top.shape[-2:], mode="area").flatten(2).flatten(0, 1)
    prompts, features = functional.normalize(frames.prompts.to(top), dim=-1), functional.normalize(top, dim=1)
    logits = _SHARPNESS * torch.einsum("fnd,fdhw->fnhw", prompts, features).flatten(2).flatten(0, 1)
    return mask_loss(logits, cells) + dice_loss(logits, cells)


def true_iou(logits: Float[Tensor, "m s s"], masks: Float[Tensor, "m q q"]) -> Float[Tensor, " m"]:
    """True IoU of predicted masks, at their own resolution; two empty ones agree."""
    found = (logits > 0).flatten(1)
    real = (functional.interpolate(masks[:, None], logits.shape[-2:], mode="area")[:, 0] > 0.5).flatten(1)
    union = (found | real).sum(1)
    return torch.where(union > 0, (found & real).sum(1) / union.clamp(min=1), 1.0)
