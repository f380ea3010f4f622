"""What a stage learns: `OBJECTIVES`, by the word of a recipe. All but `joint` are for a model from nothing."""

from __future__ import annotations

from segue.train.examples import TrainBatch
from segue.train.from_scratch.target_embeddings import noisy_target_embeddings
from segue.train.from_scratch.target_terms import target_terms, vision_alignment_term
from segue.train.loss_module import LossModule, Objective, Terms, joint, prompted_rows
from segue.train.mask_terms import decode_candidates


def vision_alignment(module: LossModule, batch: TrainBatch, seed: int) -> Terms:
    """Visual features learn to say the target embeddings of what they show; the language model is left out."""
    term = vision_alignment_term(module.model, batch, module.visual_features(batch))
    return {"vision_alignment": term + module.zero(module.model.mllm, module.model.seg_projector)}


def language(module: LossModule, batch: TrainBatch, seed: int) -> Terms:
    """The language model learns to answer, and to say the target embeddings of what it is asked for."""
    output = module.language_output(batch)
    return {
        "text": output.text,
        **target_terms(module.model, module.weights, batch, output.prompts, output.features),
    }


def decoupled(module: LossModule, batch: TrainBatch, seed: int) -> Terms:
    """As `language`, and beside it the grounder learns to find what noisy target embeddings mean."""
    output = module.language_output(batch)
    generator = module.generator(seed)
    rows = prompted_rows(batch, output)
    if rows:
        given = noisy_target_embeddings([truth for truth, _ in rows], module.model.grounder, generator)
        pieces = given.split([len(prompts) for _, prompts in rows])
        rows = [(truth, piece) for (truth, _), piece in zip(rows, pieces, strict=True)]
    return {
        "text": output.text,
        **target_terms(module.model, module.weights, batch, output.prompts, output.features),
        **module.mask_terms(rows, seed, generator=generator, decode=decode_candidates),
    }


OBJECTIVES: dict[str, Objective] = {
    "joint": joint,
    "vision_alignment": vision_alignment,
    "language": language,
    "decoupled": decoupled,
}
