"""The terms that teach a model from nothing what its prompts and its visual features are to say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.grounding.model import VisionLanguageModel
from segue.train.examples import TrainBatch, Truth
from segue.train.from_scratch.target_embeddings import (
    VisualTargets,
    summed,
    target_embedding_loss,
    vision_alignment_loss,
)
from segue.train.recipe import LossWeights

_SEEN, _GLIMPSED = 0.3, 0.05


def target_terms(
    model: VisionLanguageModel,
    weights: LossWeights,
    batch: TrainBatch,
    prompts: Sequence[Float[Tensor, "_ d"]],
    features: Float[Tensor, "v w"] | None,
) -> dict[str, Float[Tensor, ""]]:
    """Those of the two terms that have a weight; `prompts` are those of each row."""
    terms = {}
    if weights.target_embedding:
        terms["target_embedding"] = target_embedding_term(model, batch.truths, prompts)
    if weights.vision_alignment:
        terms["vision_alignment"] = vision_alignment_term(model, batch, features)
    return terms


def target_embedding_term(
    model: VisionLanguageModel, truths: Sequence[Truth | None], prompts: Sequence[Float[Tensor, "_ d"]]
) -> Float[Tensor, ""]:
    """How far the prompts are from the target embeddings of their objects."""
    known = [(truth, row) for truth, row in zip(truths, prompts, strict=True) if truth is not None]
    if not known:
        return torch.zeros((), device=model.device)
    said = torch.cat([row for _, row in known]).float()
    return summed(target_embedding_loss(said, [truth for truth, _ in known], model.grounder))


def vision_alignment_term(
    model: VisionLanguageModel, batch: TrainBatch, features: Float[Tensor, "v w"] | None
) -> Float[Tensor, ""]:
    """How far visual features, read as prompts, are from the target embedding of the object that they show.

    Without it a fresh tower gets no clear word of what is worth seeing, and the language model learns to do without its
    features.
    """
    places, rows = batch.batch.visual_places, batch.batch.visual_rows
    if features is None or places is None or rows is None:
        return torch.zeros((), device=model.device)
    side = round(model.mllm.config.tile_tokens**0.5)
    found, first = [], 0
    for truth, mine in zip(batch.truths, rows.split(places.sum(1).tolist()), strict=True):
        if truth is None:
            continue
        for frame, cells in zip(truth.prompted, mine.split(side**2), strict=False):  # marked regions follow
            found.append(visual_targets(truth, frame, first, features[cells], side))
        first += len(truth.phrases)
    if not any(len(part.features) for part in found):
        return torch.zeros((), device=model.device)
    targets = VisualTargets(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    prompts = model.prompts(functional.rms_norm(targets.features, targets.features.shape[-1:])).float()
    truths = [truth for truth in batch.truths if truth is not None]
    return summed(vision_alignment_loss(targets._replace(features=prompts), truths, model.grounder))


def visual_targets(truth: Truth, frame: int, first: int, features: Float[Tensor, "c w"], side: int) -> VisualTargets:
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
    return VisualTargets(features[is_seen], thing + first, truth.centres[thing, frame], 1.0 / count)
