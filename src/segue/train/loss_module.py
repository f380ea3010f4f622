"""What is learned from a batch: the words, and the masks that the `[SEG]`s of the answers ask for.

Letters in shapes: r rows, f frames, n objects, d prompt width, q the side of SAM 2's square, s of low-resolution masks.

Source: Sa2VA (arXiv 2501.04001), `projects/sa2va/models`; following by memory is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from segue.errors import DataError
from segue.geometry.masks import encode
from segue.grounding.losses import NUM_POINTS, at_points, dice_loss, mask_loss, uncertain_points
from segue.grounding.model import VisionLanguageModel
from segue.grounding.sam2 import Decoded, Encoded, normalised
from segue.grounding.tracking import VideoMemory, conditioning, step
from segue.models.protocol import seg_states
from segue.train.examples import TrainBatch, Truth
from segue.train.from_scratch.target_embeddings import Sights, code_loss, loose_codes, sight_loss, summed


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """How much each term counts; the first three as Sa2VA was trained, the others are for training from scratch."""

    text: float = 1.0
    """Cross-entropy of the answers' tokens."""
    mask: float = 2.0
    """Binary cross-entropy of mask points."""
    dice: float = 0.5
    """Dice loss of mask points."""
    align: float = 0.0
    """Agreement of a prompt with the image features where its object is: what a fresh model needs to begin."""
    iou: float = 0.0
    """Squared error of the estimated IoU, from which the best of three masks is chosen."""
    presence: float = 0.0
    """Cross-entropy of the judgement that an object is visible."""
    code: float = 0.0
    """Distance of prompts from the codes of their objects: `segue.train.from_scratch.target_embeddings.code_loss`."""
    sight: float = 0.0
    """The same of the visual features that show an object, read as if they were prompts."""


_SHARPNESS = 16.0
_SEEN, _GLIMPSED = 0.3, 0.05

Objective = Literal["whole", "apart", "words", "sight"]
"""whole: the grounder learns from what the language model says. From nothing, sight: visual features learn to say the
codes of what they show; words: the language model learns to say those of what it is asked for; apart: that, and the
grounder beside it to find what codes mean."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An object of a validation row: pixels of SAM 2's square over all its frames, and whether `[SEG]` came by itself.

    `found` and `truth` count the pixels of the predicted and of the true mask. `mask` is the predicted one on the first
    frame that the model was shown, as COCO run lengths.
    """

    intersection: int
    found: int
    truth: int
    is_emitted: bool
    mask: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """Frames that are asked by prompt, with the same number of objects each: f is that of all rows together."""

    encoded: Encoded
    prompts: Float[Tensor, "f n d"]
    masks: Float[Tensor, "f n q q"]


@dataclass(frozen=True, slots=True)
class _Found:
    """Masks that were asked for or followed, their estimates, and what they should have been; frame by frame."""

    logits: Float[Tensor, "m s s"]
    iou: Float[Tensor, " m"]
    presence: Float[Tensor, " m"]
    masks: Float[Tensor, "m q q"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row's frames begin among all encoded ones, and its objects among all that were asked for."""

    truth: Truth
    frames: int
    decoded: int
    objects: int


@dataclass(frozen=True, slots=True)
class _Spoken:
    """The loss of the words, the states of all tokens, each row's prompts, and the visual features."""

    text: Float[Tensor, ""]
    hidden: Float[Tensor, "r l w"]
    prompts: list[Float[Tensor, "_ d"]]
    features: Float[Tensor, "v w"] | None


class _Look(NamedTuple):
    """Features that show objects, as `segue.train.from_scratch.target_embeddings.Sights` describes them."""

    shown: Float[Tensor, "c w"]
    which: Int[Tensor, " c"]
    where: Float[Tensor, "c 2"]
    counts: Float[Tensor, " c"]


_Pointing = tuple[Truth, Float[Tensor, "_ d"]]


class Learner(nn.Module):
    """A model and what it is to learn by; this is what is wrapped for several processes.

    Each row counts with `num_masks` objects: of more some are drawn by chance, fewer are repeated. Each mask is judged
    at `num_points` points, most of them where it is least decided.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        weights: LossWeights,
        seg_id: int,
        objective: Objective = "whole",
        num_masks: int = 5,
        num_points: int = NUM_POINTS,
    ):
        super().__init__()
        self.model = model
        self.weights = weights
        self.seg_id = seg_id
        self.objective = objective
        self.num_masks = num_masks
        self.num_points = num_points

    def forward(self, batch: TrainBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        """The weighted sum as `loss`, and every term as it is. All chance comes from `seed`.

        Where nothing is pointed at, the terms of masks are 0, and still reach every parameter that learns from them.
        """
        if self.objective == "sight":
            nothing = self._nothing(self.model.mllm, self.model.seg_projector)
            return self._summed({"sight": self._sight_term(batch, self._features(batch)) + nothing})
        generator = torch.Generator(self.model.device).manual_seed(seed)
        spoken = self._speak(batch)
        rows = [(truth, row) for truth, row in zip(batch.truths, spoken.prompts, strict=True) if truth is not None]
        terms = {"text": spoken.text}
        if self.weights.code:
            terms["code"] = self._code_term(rows)
        if self.weights.sight:
            terms["sight"] = self._sight_term(batch, spoken.features)
        if self.objective == "words":
            return self._summed(terms)
        if rows and self.objective == "apart":
            given = loose_codes([truth for truth, _ in rows], self.model.grounder, generator)
            pieces = given.split([len(prompts) for _, prompts in rows])
            rows = [(truth, piece) for (truth, _), piece in zip(rows, pieces, strict=True)]
        order = torch.Generator().manual_seed(seed)
        drawn = [self._drawn(row, order) for row in rows]
        terms |= self._mask_terms(drawn, generator) if drawn else self._idle()
        return self._summed(terms)

    def _summed(self, terms: dict[str, Float[Tensor, ""]]) -> dict[str, Float[Tensor, ""]]:
        weighted = [getattr(self.weights, name) * term for name, term in terms.items()]
        return {"loss": torch.stack(weighted).sum(), **terms}

    @torch.no_grad()
    def judge(self, batch: TrainBatch) -> list[Judged]:
        """Each object of the batch, found by the state on its `[SEG]` with the answers given."""
        spoken = self._speak(batch)
        judged = []
        for number, (truth, asking) in enumerate(zip(batch.truths, spoken.prompts, strict=True)):
            if truth is None:
                continue
            found = self._find([(truth, asking)], self._encode([truth]))
            size = (truth.masks.shape[-2], truth.masks.shape[-1])
            whole = functional.interpolate(found.logits[:, None], size, mode="bilinear", align_corners=False) > 0
            masks = whole.view(-1, len(asking), size[0] * size[1]).transpose(0, 1)
            real = (found.masks > 0.5).view(-1, len(asking), size[0] * size[1]).transpose(0, 1)
            said = self._emitted(spoken.hidden[number], batch.batch.input_ids[number])
            judged += [
                Judged(
                    int((one & other).sum()),
                    int(one.sum()),
                    int(other.sum()),
                    is_emitted,
                    encode(one[0].view(size).cpu().numpy()),
                )
                for one, other, is_emitted in zip(masks, real, said, strict=True)
            ]
        return judged

    def _speak(self, batch: TrainBatch) -> _Spoken:
        mllm, labels = self.model.mllm, batch.batch.labels
        if labels is None:
            raise DataError("the batch has no labels, so there is nothing to learn; prepare its rows with answers")
        features = self._features(batch)
        text, hidden = mllm(batch.batch, features)
        # by the labels, not the ids: a [SEG] in a question asks for nothing
        prompts = self.model.prompts(seg_states(hidden, labels, self.seg_id))
        return _Spoken(text, hidden, list(prompts.split((labels == self.seg_id).sum(1).tolist())), features)

    def _features(self, batch: TrainBatch) -> Float[Tensor, "v w"] | None:
        """Visual features of all the batch's pictures; None if there is none."""
        if batch.batch.pixels is None:
            return None
        features: Tensor = self.model.mllm.encode(batch.batch.pixels, batch.batch.grids)
        return features

    def _emitted(self, hidden: Float[Tensor, "l d"], ids: Int[Tensor, " l"]) -> list[bool]:
        before = hidden[:-1][ids[1:] == self.seg_id]
        chosen: list[bool] = (self.model.mllm.head(before).argmax(-1) == self.seg_id).tolist()
        return chosen

    def _drawn(self, row: _Pointing, generator: torch.Generator) -> _Pointing:
        """The row with just `num_masks` objects; the generator is the CPU's."""
        truth, prompts = row
        count = len(prompts)
        if count > self.num_masks:
            order = torch.randperm(count, generator=generator)[: self.num_masks]
        else:
            order = torch.arange(self.num_masks) % count
        phrases = tuple(truth.phrases[number] for number in order.tolist())
        order = order.to(prompts.device)
        return replace(truth, masks=truth.masks[order], centres=truth.centres[order], phrases=phrases), prompts[order]

    def _encode(self, truths: Sequence[Truth]) -> Encoded:
        pixels = normalised(torch.cat([truth.frames for truth in truths]))
        encoded: Encoded = self.model.grounder.encode(pixels)
        return encoded

    def _mask_terms(self, rows: Sequence[_Pointing], generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        encoded = self._encode([truth for truth, _ in rows])
        found = self._try(rows, encoded) if self.objective == "apart" else self._find(rows, encoded)
        points = uncertain_points(found.logits, generator, count=self.num_points)
        predicted, wanted = at_points(found.logits, points), at_points(found.masks, points)
        terms = {"mask": mask_loss(predicted, wanted), "dice": dice_loss(predicted, wanted)}
        if self.weights.align:
            terms["align"] = _alignment(_asked(rows, encoded))
        if self.weights.iou:
            terms["iou"] = functional.mse_loss(found.iou, _iou(found.logits.detach(), found.masks))
        if self.weights.presence:
            there = (found.masks > 0.5).flatten(1).any(1).float()
            terms["presence"] = functional.binary_cross_entropy_with_logits(found.presence, there)
        return terms

    def _find(self, rows: Sequence[_Pointing], encoded: Encoded) -> _Found:
        """All objects of all frames, which stand row by row in `encoded`: those asked for, then those followed."""
        asked = _asked(rows, encoded)
        decoded = self.model.grounder.prompted_each(asked.encoded, asked.prompts)
        found = _Found(decoded.logits, decoded.iou, decoded.presence, asked.masks.flatten(0, 1))
        return _joined([found, *self._followed(rows, encoded, decoded)])

    def _try(self, rows: Sequence[_Pointing], encoded: Encoded) -> _Found:
        """All three masks of each object that is asked for: a fresh model does not know yet which of them to choose."""
        asked = _asked(rows, encoded)
        decoded = self.model.grounder.candidates(asked.encoded, asked.prompts)
        masks = asked.masks.flatten(0, 1)
        wanted = masks.repeat_interleave(len(decoded.logits) // len(masks), 0)
        return _Found(decoded.logits, decoded.iou, decoded.presence, wanted)

    def _followed(self, rows: Sequence[_Pointing], encoded: Encoded, given: Decoded) -> Iterator[_Found]:
        """Objects on the frames that the language model was not shown, from memory; rows of the same plan together."""
        plans: dict[tuple[tuple[int, ...], tuple[int, ...]], list[_Place]] = {}
        first, done = 0, 0
        for truth, prompts in rows:
            if len(truth.asked) < len(truth.frames):
                plans.setdefault((truth.numbers, truth.asked), []).append(_Place(truth, first, done, len(prompts)))
            first, done = first + len(truth.frames), done + len(truth.asked) * len(prompts)
        grounder = self.model.grounder
        for (numbers, asked), places in plans.items():
            frames = [_of_objects(encoded, places, frame) for frame in range(len(numbers))]
            together = len(frames[0].top)
            memory = VideoMemory(
                tuple(
                    conditioning(
                        grounder, numbers[frame], frames[frame], _given(given, places, order), at_once=together
                    )
                    for order, frame in enumerate(asked)
                )
            )
            for frame in range(len(numbers)):
                if frame in asked:
                    continue
                decoded, memory = step(
                    grounder, numbers[frame], frames[frame], memory, consistent=False, at_once=together
                )
                masks = torch.cat([place.truth.masks[:, frame] for place in places]).float() / 255
                yield _Found(decoded.logits, decoded.iou, decoded.presence, masks)

    def _code_term(self, rows: Sequence[_Pointing]) -> Float[Tensor, ""]:
        """How far the prompts are from the codes of their objects."""
        if not rows:
            return torch.zeros((), device=self.model.device)
        prompts = torch.cat([prompts for _, prompts in rows]).float()
        return summed(code_loss(prompts, [truth for truth, _ in rows], self.model.grounder))

    def _sight_term(self, batch: TrainBatch, features: Float[Tensor, "v w"] | None) -> Float[Tensor, ""]:
        """How far visual features, read as prompts, are from the code of the object that they show.

        Without it a fresh tower gets no clear word of what is worth seeing, and the language model learns to do
        without its features.
        """
        places, rows = batch.batch.visual_places, batch.batch.visual_rows
        if features is None or places is None or rows is None:
            return torch.zeros((), device=self.model.device)
        side = round(self.model.mllm.config.tile_tokens**0.5)
        looks = []
        first = 0
        for truth, mine in zip(batch.truths, rows.split(places.sum(1).tolist()), strict=True):
            if truth is None:
                continue
            for frame, cells in zip(truth.asked, mine.split(side**2), strict=False):  # marked regions follow
                looks.append(_look(truth, frame, first, features[cells], side))
            first += len(truth.phrases)
        if not looks or not sum(len(look.shown) for look in looks):
            return torch.zeros((), device=self.model.device)
        shown, which, where, counts = (torch.cat(parts) for parts in zip(*looks, strict=True))
        prompts = self.model.prompts(functional.rms_norm(shown, shown.shape[-1:])).float()
        truths = [truth for truth in batch.truths if truth is not None]
        return summed(sight_loss(prompts, Sights(which, where, counts), truths, self.model.grounder))

    def _idle(self) -> dict[str, Float[Tensor, ""]]:
        """Terms of 0 that reach every parameter that learns from masks: all processes must reach the same ones."""
        zero = self._nothing(self.model.seg_projector, self.model.grounder)
        return {"mask": zero, "dice": zero}

    def _nothing(self, *parts: nn.Module) -> Float[Tensor, ""]:
        """A 0 that reaches every parameter of some parts that learns."""
        zero = torch.zeros((), device=self.model.device)
        for parameter in (one for part in parts for one in part.parameters() if one.requires_grad):
            zero = zero + 0.0 * parameter.sum()
        return zero


def _look(truth: Truth, frame: int, first: int, features: Float[Tensor, "c w"], side: int) -> _Look:
    """The features of a frame that show an object of a row, whose objects are counted from `first`.

    A feature shows what covers most of its cell, if that is not too little; of small things their best cell.
    """
    masks = truth.masks[:, frame, None].float() / 255
    shares = functional.interpolate(masks, (side, side), mode="area").flatten(1)
    share, thing = shares.max(0)
    is_best = shares == shares.amax(1, keepdim=True)
    is_seen = (share > _SEEN) | (is_best.gather(0, thing[None])[0] & (share > _GLIMPSED))
    thing = thing[is_seen]
    count = torch.bincount(thing, minlength=len(shares))[thing]
    return _Look(features[is_seen], thing + first, truth.centres[thing, frame], 1.0 / count)


def _asked(rows: Sequence[_Pointing], encoded: Encoded) -> _Asked:
    places: list[int] = []
    first = 0
    for truth, _ in rows:
        places += [first + place for place in truth.asked]
        first += len(truth.frames)
    chosen = torch.tensor(places, device=encoded.top.device)
    fine, middle = encoded.fine
    return _Asked(
        Encoded(encoded.top[chosen], (fine[chosen], middle[chosen]), encoded.position),
        torch.cat([prompts.expand(len(truth.asked), -1, -1) for truth, prompts in rows]),
        torch.cat([truth.masks[:, list(truth.asked)].transpose(0, 1) for truth, _ in rows]).float() / 255,
    )


def _of_objects(encoded: Encoded, places: Sequence[_Place], frame: int) -> Encoded:
    """The same frame of several rows, once for each of their objects."""
    chosen = [place.frames + frame for place in places for _ in range(place.objects)]
    rows = torch.tensor(chosen, device=encoded.top.device)
    return Encoded(encoded.top[rows], (encoded.fine[0][rows], encoded.fine[1][rows]), encoded.position)


def _given(decoded: Decoded, places: Sequence[_Place], order: int) -> Decoded:
    """What was found of all objects of several rows on the asked frame number `order` of each."""
    starts = [(place.decoded + order * place.objects, place.objects) for place in places]
    rows = torch.tensor([start + number for start, count in starts for number in range(count)])
    rows = rows.to(decoded.iou.device)
    return Decoded(decoded.logits[rows], decoded.iou[rows], decoded.presence[rows], decoded.pointer[rows])


def _joined(parts: Sequence[_Found]) -> _Found:
    return _Found(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.iou for part in parts]),
        torch.cat([part.presence for part in parts]),
        torch.cat([part.masks for part in parts]),
    )


def _alignment(asked: _Asked) -> Float[Tensor, ""]:
    """How far prompts are from pointing, by their cosines, at the image features that show their object."""
    top = asked.encoded.top
    cells = functional.interpolate(asked.masks, top.shape[-2:], mode="area").flatten(2).flatten(0, 1)
    prompts, features = functional.normalize(asked.prompts.to(top), dim=-1), functional.normalize(top, dim=1)
    logits = _SHARPNESS * torch.einsum("fnd,fdhw->fnhw", prompts, features).flatten(2).flatten(0, 1)
    return mask_loss(logits, cells) + dice_loss(logits, cells)


def _iou(logits: Float[Tensor, "m s s"], masks: Float[Tensor, "m q q"]) -> Float[Tensor, " m"]:
    """True IoU of predicted masks, at their own resolution; two empty ones agree."""
    found = (logits > 0).flatten(1)
    real = (functional.interpolate(masks[:, None], logits.shape[-2:], mode="area")[:, 0] > 0.5).flatten(1)
    union = (found | real).sum(1)
    return torch.where(union > 0, (found & real).sum(1) / union.clamp(min=1), 1.0)
