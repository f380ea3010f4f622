"""What is learned from a batch: the words, and the masks that the `[SEG]`s of the answers ask for.

Letters in shapes: r rows, n objects, d prompt width, l tokens, v visual tokens.

Source: Sa2VA (arXiv 2501.04001), `projects/sa2va/models`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from segue.errors import DataError
from segue.features import FeatureCache, Features
from segue.geometry.masks import encode
from segue.grounding.losses import NUM_POINTS
from segue.grounding.model import VisionLanguageModel
from segue.models.protocol import seg_states, visual_features
from segue.train.examples import ShownMedium, TrainBatch, frame_keys
from segue.train.mask_terms import Decode, PromptedRow, decode_masks, encode_frames, mask_terms
from segue.train.recipe import LossWeights

Terms = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True, slots=True)
class ObjectResult:
    """An object of a validation row: pixels of SAM 2's square over all its frames, and whether `[SEG]` came by itself.

    `found` and `truth` count the pixels of the predicted and of the true mask. `mask` is the predicted one on the first
    frame that the model was shown, as COCO run lengths.
    """

    intersection: int
    found: int
    truth: int
    is_emitted: bool
    mask: str

    @property
    def union(self) -> int:
        """Pixels in either mask."""
        return self.found + self.truth - self.intersection

    @property
    def iou(self) -> float:
        """Shared pixels over those in either mask; nothing found of nothing is 1."""
        return self.intersection / self.union if self.union else 1.0

    @property
    def dice(self) -> float:
        """Twice the shared pixels over those of both masks; nothing found of nothing is 1."""
        total = self.found + self.truth
        return 2 * self.intersection / total if total else 1.0


@dataclass(frozen=True, slots=True)
class LanguageOutput:
    """The loss of the words, the states of all tokens, each row's prompts, and the visual features."""

    text: Float[Tensor, ""]
    hidden: Float[Tensor, "r l w"]
    prompts: list[Float[Tensor, "_ d"]]
    features: Float[Tensor, "v w"] | None


class LossModule(nn.Module):
    """A model and what it is to learn by; this is what is wrapped for several processes.

    Each row counts with `num_masks` objects: of more some are drawn by chance, fewer are repeated. Each mask is
    compared at `num_points` points. `objective`, one of `segue.train.from_scratch.objectives`, gives the terms that a
    batch has; they are weighted and added here. What the tower makes of pictures is kept in `features`.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        weights: LossWeights,
        seg_id: int | None,
        objective: Objective,
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
        self.features: FeatureCache | None = None

    def forward(self, batch: TrainBatch, seed: int) -> Terms:
        """The weighted sum as `loss`, and every term as it is. All chance comes from `seed`.

        Where nothing is pointed at, the terms of masks are 0, and still reach every parameter that learns from them.
        """
        terms = self.objective(self, batch, seed)
        weighted = [getattr(self.weights, name) * term for name, term in terms.items()]
        return {"loss": torch.stack(weighted).sum(), **terms}

    @torch.no_grad()
    def evaluate(self, batch: TrainBatch) -> list[ObjectResult]:
        """Each object of the batch, found by the state on its `[SEG]` with the answers given."""
        output, grounder = self.language_output(batch), self.model.grounder
        results = []
        for number, (truth, prompts) in enumerate(zip(batch.truths, output.prompts, strict=True)):
            if truth is None:
                continue
            found = decode_masks(grounder, [(truth, prompts)], encode_frames(grounder, [truth]))
            size = (truth.masks.shape[-2], truth.masks.shape[-1])
            whole = functional.interpolate(found.logits[:, None], size, mode="bilinear", align_corners=False) > 0
            masks = whole.view(-1, len(prompts), size[0] * size[1]).transpose(0, 1)
            real = (found.masks > 0.5).view(-1, len(prompts), size[0] * size[1]).transpose(0, 1)
            emitted = self._emitted(output.hidden[number], batch.batch.input_ids[number])
            results += [
                ObjectResult(
                    int((one & other).sum()),
                    int(one.sum()),
                    int(other.sum()),
                    is_emitted,
                    encode(one[0].view(size).cpu().numpy()),
                )
                for one, other, is_emitted in zip(masks, real, emitted, strict=True)
            ]
        return results

    def language_output(self, batch: TrainBatch) -> LanguageOutput:
        """One pass of the language model over the answers.

        Raises: DataError, for a batch without labels.
        """
        mllm, labels = self.model.mllm, batch.batch.labels
        if labels is None:
            raise DataError("the batch has no labels, so there is nothing to learn; prepare its rows with answers")
        features = self.visual_features(batch)
        text, hidden = mllm(batch.batch.with_features(features))
        if features is None and torch.distributed.is_initialized():
            # another process may see a picture, and all must reach the same parameters
            text = text + self.zero(*(part for name, part in mllm.named_children() if name != "language_model"))
        if self.model.grounder is None or self.seg_id is None:
            return LanguageOutput(text, hidden, [hidden[0, :0]] * len(labels), features)
        # by the labels, not the ids: a [SEG] in a question asks for nothing
        prompts = self.model.prompts(seg_states(hidden, labels, self.seg_id))
        return LanguageOutput(text, hidden, list(prompts.split((labels == self.seg_id).sum(1).tolist())), features)

    def visual_features(self, batch: TrainBatch) -> Float[Tensor, "v w"] | None:
        """Visual features of all the batch's pictures; None if there is none."""
        if not batch.shown:
            return visual_features(self.model.mllm, batch.batch)
        states = torch.cat([self._states(one) for one in batch.shown])
        projected: Tensor = self.model.mllm.project(states, batch.batch.grids)
        return projected

    @torch.no_grad()
    def _states(self, shown: ShownMedium) -> Float[Tensor, "q ..."]:
        """A medium's tower states, computed as an engine computes them: by themselves, in the model's precision."""
        device = self.model.device
        if shown.states is not None:
            return shown.states.to(device)
        assert shown.pixels is not None and self.features is not None
        began = perf_counter()
        with torch.autocast(device.type, enabled=False):
            states: Tensor = self.model.mllm.tower(shown.pixels.to(device), shown.grids)
        keys = frame_keys(shown.key)
        seconds = (perf_counter() - began) / len(keys)
        for key, part in zip(keys, states.tensor_split(len(keys)), strict=True):
            # where frames are laid out one by one, an engine finds the same entry
            beside = {} if shown.grids is None or len(keys) > 1 else {"grids": shown.grids}
            self.features.put(*key, Features(part, beside), seconds=seconds)
        return states

    def mask_terms(
        self,
        rows: Sequence[PromptedRow],
        seed: int,
        *,
        generator: torch.Generator | None = None,
        decode: Decode = decode_masks,
    ) -> Terms:
        """The terms of `num_masks` objects of each row, none without a grounder; `generator`, by default of the seed,
        draws the points.
        """
        if self.model.grounder is None:
            return {}
        if not rows:
            # all processes must reach the same parameters
            zero = self.zero(self.model.seg_projector, self.model.grounder)
            return {"mask": zero, "dice": zero}
        order = torch.Generator().manual_seed(seed)
        sampled = [self._sampled(row, order) for row in rows]
        generator = generator or self.generator(seed)
        grounder = self.model.grounder
        return mask_terms(grounder, sampled, self.weights, generator, num_points=self.num_points, decode=decode)

    def generator(self, seed: int) -> torch.Generator:
        """A source of chance on the model's device."""
        return torch.Generator(self.model.device).manual_seed(seed)

    def zero(self, *parts: nn.Module) -> Float[Tensor, ""]:
        """A 0 that reaches every parameter of some parts that learns."""
        zero = torch.zeros((), device=self.model.device)
        for parameter in (one for part in parts for one in part.parameters() if one.requires_grad):
            zero = zero + 0.0 * parameter.sum()
        return zero

    def _emitted(self, hidden: Float[Tensor, "l d"], ids: Int[Tensor, " l"]) -> list[bool]:
        before = hidden[:-1][ids[1:] == self.seg_id]
        emitted: list[bool] = (self.model.mllm.head(before).argmax(-1) == self.seg_id).tolist()
        return emitted

    def _sampled(self, row: PromptedRow, generator: torch.Generator) -> PromptedRow:
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


Objective = Callable[[LossModule, TrainBatch, int], Terms]


def prompted_rows(batch: TrainBatch, output: LanguageOutput) -> list[PromptedRow]:
    """The rows that point at something, with their prompts."""
    return [(truth, row) for truth, row in zip(batch.truths, output.prompts, strict=True) if truth is not None]
