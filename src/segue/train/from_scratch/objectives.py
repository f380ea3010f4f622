"""What a stage learns: `OBJECTIVES`, by the word of a recipe. All but `joint` are for a model from nothing."""

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
    noisy_target_embeddings,
    summed,
    target_embedding_loss,
    vision_alignment_loss,
)
from segue.train.loss_module import LanguageOutput, LossModule, Objective, Terms, prompted_rows
from segue.train.mask_terms import PromptedRow, decode_candidates

_SEEN, _GLIMPSED = 0.3, 0.05


def joint(module: LossModule, batch: TrainBatch, seed: int) -> Terms:
    """Words, and masks that the grounder finds by what the language model says."""
    output = module.language_output(batch)
    return _language_terms(module, batch, output) | module.mask_terms(prompted_rows(batch, output), seed)


def vision_alignment(module: LossModule, batch: TrainBatch, seed: int) -> Terms:
    """Visual features learn to say the target embeddings of what they show; the language model is left out."""
    term = vision_alignment_term(module.model, batch, module.visual_features(batch))
    return {"vision_alignment": term + module.zero(module.model.mllm, module.model.seg_projector)}


def language(module: LossModule, batch: TrainBatch, seed: int) -> Terms:
    """The language model learns to answer, and to say the target embeddings of what it is asked for."""
    return _language_terms(module, batch, module.language_output(batch))


def decoupled(module: LossModule, batch: TrainBatch, seed: int) -> Terms:
    """As `language`, and beside it the grounder learns to find what noisy target embeddings mean."""
    output = module.language_output(batch)
    generator = module.generator(seed)
    rows = prompted_rows(batch, output)
    if rows:
        given = noisy_target_embeddings([truth for truth, _ in rows], module.model.grounder, generator)
        pieces = given.split([len(prompts) for _, prompts in rows])
        rows = [(truth, piece) for (truth, _), piece in zip(rows, pieces, strict=True)]
    masks = module.mask_terms(rows, seed, generator=generator, decode=decode_candidates)
    return _language_terms(module, batch, output) | masks


OBJECTIVES: dict[str, Objective] = {
    "joint": joint,
    "vision_alignment": vision_alignment,
    "language": language,
    "decoupled": decoupled,
}


def _language_terms(module: LossModule, batch: TrainBatch, output: LanguageOutput) -> Terms:
    """That of the words, and those of the two terms from nothing that have a weight."""
    terms = {"text": output.text}
    if module.weights.target_embedding:
        terms["target_embedding"] = target_embedding_term(module.model, prompted_rows(batch, output))
    if module.weights.vision_alignment:
        terms["vision_alignment"] = vision_alignment_term(module.model, batch, output.features)
    return terms


def target_embedding_term(model: VisionLanguageModel, rows: Sequence[PromptedRow]) -> Float[Tensor, ""]:
    """How far the prompts are from the target embeddings of their objects."""
    if not rows:
        return torch.zeros((), device=model.device)
    prompts = torch.cat([prompts for _, prompts in rows]).float()
    return summed(target_embedding_loss(prompts, [truth for truth, _ in rows], model.grounder))


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
