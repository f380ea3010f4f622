"""A model of one's own size with weights to begin from, and a tokenizer made of the texts that it will read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor

from segue.grounding import sam2
from segue.grounding.model import GroundedConfig, GroundedModel, build
from segue.grounding.official import SPECIAL_TOKENS

# What stands in for "as large as its input is wide": places and tokens that are added to what is seen.
_SPREAD = {
    r".*\.embed_tokens\.weight": 0.5,
    r".*\.lm_head\.weight": 0.02,
    r".*\.positional_embedding": 1.0,
    r".*(position_embeddings|pos_embed|pos_embed_window)(\.weight)?": 0.05,
    r".*(_tokens?|_embed|cls_token)(\.weight)?": 0.5,
    r".*\.(no_memory_\w+|no_object_pointer|memory_temporal_positional_encoding)": 0.1,
}
_LINE = {r".*\.bias": 0.0, r".*\.lambda_[12]": 1.0, r".*\.scale": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """Sizes of a model of the InternVL family with a Qwen2 language model."""

    tower: Mapping[str, Any]
    """InternViT: fields of the library's configuration (hidden_size, num_hidden_layers, patch_size ...)."""
    language: Mapping[str, Any]
    """Qwen2: fields of the library's configuration; the number of embedding rows follows from the tokenizer."""
    sam2: Mapping[str, Any]
    """SAM 2: what differs from Hiera-L, in the names of `sam2_config.json`."""
    tile: int = 448
    """Side of a tile in pixels."""
    pieces: int = 1024
    """Tokens of text to make, besides the special ones."""
    spoken: Mapping[str, Any] = field(default_factory=dict)


def configuration(scratch: Scratch, rows: int) -> GroundedConfig:
    """The configuration of a model whose tokenizer has so many tokens."""
    vision = {"image_size": [scratch.tile] * 2, "use_mean_pooling": True, **scratch.tower}
    text = {"model_type": "qwen2", "vocab_size": rows, "tie_word_embeddings": False, **scratch.language}
    mllm = {"vision_config": vision, "text_config": text, "tile_side": scratch.tile}
    return GroundedConfig(mllm_config=mllm, sam2_config=sam2.architecture(scratch.sam2))


def begin(config: GroundedConfig, seed: int) -> GroundedModel:
    """A model with random weights of the size that learning starts well from; they follow from the seed alone.

    The library's own initialisation is meant for loading: it leaves places at zero, and such a model does not learn.
    """
    model = build(config, dtype=torch.float32, device="cpu")
    draws = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.ndim < 2:
            tensor.fill_(_first(_LINE, name, 1.0))
        else:
            tensor.normal_(std=_first(_SPREAD, name, _fan_in(name, tensor) ** -0.5), generator=draws)
    gaussian = model.grounder.sam2.prompt_encoder.shared_embedding.positional_embedding
    model.grounder.sam2.shared_image_embedding.positional_embedding.copy_(gaussian)
    return model


def _fan_in(name: str, tensor: Tensor) -> int:
    # transposed convolutions of the mask decoder have their inputs in front
    return tensor.shape[0] if re.fullmatch(r".*\.upscale_conv\d\.weight", name) else tensor[0].numel()


def _first(table: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, name)), default)


def train_tokenizer(texts: Iterable[str], pieces: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `pieces` pieces at most, that knows every byte, and the special tokens.

    Digits stand alone, so that numbers are read digit by digit.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files by which a tokenizer is loaded."""
    tokenizer.save(str(folder / "tokenizer.json"))
