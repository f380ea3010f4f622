"""Original SAM 2 weights given beside a model whose checkpoint has only the mask decoder that learned language.

Such a model follows objects through a video with a decoder that never learned to. With SAM 2's own decoder beside it,
it does as a checkpoint that carries both (Sa2VA-i).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.initialization import no_init_weights
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from segue import weights
from segue.checkpoints.folders import hashed, open_folder
from segue.checkpoints.pth import open_pth
from segue.errors import CheckpointError, ConfigError
from segue.grounding import sam2
from segue.grounding.model import VisionLanguageModel
from segue.weights import lazy
from segue.weights.keys import compiled, match
from segue.weights.lazy import Tensors

log = logging.getLogger(__name__)

PLACE = "grounder.sam2."
DECODER = "mask_decoder."
SHARED = ("vision_encoder.", "prompt_encoder.", "shared_image_embedding.", "no_memory_embedding")
"""What the decoder that learned language reads as well: it must be what that decoder was trained on."""


def open_sam2(source: Path) -> Tensors:
    """SAM 2's tensors under our names, from the file that it was published in: `.pt`, or safetensors of those names.

    Nothing is unpickled. Names that no SAM 2.0 has, those of SAM 2.1 among them, are refused.

    Raises: CheckpointError, naming every tensor that is none of SAM 2's.
    """
    is_safe = source.suffix == ".safetensors"
    file = lazy.stored(weights.read_header(source)) if is_safe else open_pth(source).tensors
    rules = compiled(sam2.key_table("", PLACE, "grounder.language_decoder."))
    writes = {name: match(name, rules) for name in file.specs}
    strange = [f"unexpected: {name} {list(file.specs[name].shape)}" for name, write in writes.items() if write is None]
    if strange:
        raise CheckpointError(f"{source} is no SAM 2 checkpoint that Sa2VA builds on{weights.listing(strange)}")
    return lazy.native(file, [write for write in writes.values() if write])


@torch.no_grad()
def attach_sam2(model: VisionLanguageModel, source: Path) -> dict[str, Any]:
    """Let a model with one mask decoder follow objects with SAM 2's own; returns what its lineage says of it.

    `source` is SAM 2's file, or a folder of a model with both decoders. Decoder and memory are SAM 2's afterwards, and
    the decoder that learned language keeps to finding. What both read (image encoder, prompt encoder) must be in the
    model what it is in the file, but for the rounding of bfloat16, or its decoders would not belong together.

    Raises: ConfigError, if the model has both decoders, or the folder has not; CheckpointError, naming every tensor
    that is missing, unexpected, of another shape or of other numbers.
    """
    if model.grounder is None:
        raise ConfigError(f"the model has no grounder, so that SAM 2's weights mean nothing to it; leave {source} out")
    if model.config.two_decoders:
        raise ConfigError(f"the model carries SAM 2's own mask decoder already; leave {source} out")
    given = _given(source)
    places = {PLACE + name: tensor for name, tensor in model.grounder.sam2.state_dict().items()}
    _check(source, given, places)
    before = {name: tensor.clone() for name, tensor in places.items() if _is_memory(name)}
    decoder = _decoder(model)
    for name, tensor in decoder.state_dict().items():
        tensor.copy_(given.read(PLACE + DECODER + name))
    for name in before:
        places[name].copy_(given.read(name))
    model.grounder.language_decoder = model.grounder.sam2.mask_decoder
    model.grounder.sam2.mask_decoder = decoder
    model.config.two_decoders = True
    changed = sum(not _agree(tensor, places[name]) for name, tensor in before.items())
    log.info("%s: %d tensors, of memory %d changed", source, len(given.specs), changed)
    return {**hashed(source), "tensors": len(given.specs), "memory_changed": changed}


def _given(source: Path) -> Tensors:
    if not source.is_dir():
        return open_sam2(source)
    other = open_folder(source)
    if not other.config.two_decoders:
        raise ConfigError(
            f"{source} has the mask decoder that learned language and not SAM 2's own; "
            "give SAM 2's own file (sam2_hiera_large.pt), or a model with both decoders"
        )
    specs = {name: spec for name, spec in other.tensors.specs.items() if name.startswith(PLACE)}
    return Tensors(specs, other.tensors.read)


def _check(source: Path, given: Tensors, places: dict[str, Tensor]) -> None:
    shapes = given.shapes
    problems = [f"missing: {name} {list(places[name].shape)}" for name in places.keys() - shapes.keys()]
    problems += [f"unexpected: {name} {list(shapes[name])}" for name in shapes.keys() - places.keys()]
    problems += [
        f"misshapen: {name} is {list(shapes[name])} in the file, the model has {list(tensor.shape)}"
        for name, tensor in places.items()
        if name in shapes and shapes[name] != tuple(tensor.shape)
    ]
    if problems:
        raise CheckpointError(
            f"{source} is not the SAM 2 of this model; nothing was changed. Released models are built on "
            f"sam2_hiera_large.pt of SAM 2.0{weights.listing(problems)}"
        )
    strange = [f"other numbers: {name}" for name in places if _is_shared(name) and _differs(given, places, name)]
    if strange:
        raise CheckpointError(
            f"{source} is another SAM 2 than the one this model was trained with; nothing was changed. Take the one "
            f"that its training began from{weights.listing(strange)}"
        )


def _differs(given: Tensors, places: dict[str, Tensor], name: str) -> bool:
    return not _agree(places[name], given.read(name))


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, perhaps rounded to bfloat16 on the way."""
    first, second = one.float().cpu(), other.float().cpu()
    return torch.allclose(first, second, rtol=2**-7, atol=1e-5 * float(second.abs().max()))


def _is_shared(name: str) -> bool:
    return name.removeprefix(PLACE).startswith(SHARED)


def _is_memory(name: str) -> bool:
    return not _is_shared(name) and not name.startswith(PLACE + DECODER)


def _decoder(model: VisionLanguageModel) -> Sam2VideoMaskDecoder:
    """A second mask decoder beside the first, in float32; its numbers are yet to come."""
    first = model.grounder.sam2.mask_decoder
    with no_init_weights(), torch.device(next(first.parameters()).device):
        decoder: Sam2VideoMaskDecoder = Sam2VideoMaskDecoder(model.config.sam2_config.mask_decoder_config)
    return decoder.float().eval().requires_grad_(False)
