"""Published models as data, and the signs by which tensors tell which family's they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TINY_SAM2: Mapping[str, Any] = {
    "embed_dim": 16,
    "num_heads": 1,
    "stages": [1, 2, 2, 1],
    "global_att_blocks": [4],
    "d_model": 32,
    "mem_dim": 8,
    "mem_attn_layers": 2,
    "mem_attn_ffn": 64,
    "image_size": 256,
    "mask_decoder_mlp_dim": 64,
    "iou_head_hidden_dim": 32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model of a known architecture: one that was released, or a tiny one for tests, which has no `repository`.

    `repository` is its id on the hub, `config` the fields of its family's configuration, `template` the chat template
    it was trained with, `billions` its published number of parameters. `sam2` are the fields of its sam2_config.json,
    empty for Hiera-L and `None` for a model without a grounder; with `two_decoders` the mask decoder that learned
    language stands beside the original one.
    """

    repository: str = ""
    config: Mapping[str, Any]
    template: str
    billions: float
    sam2: Mapping[str, Any] | None = None
    two_decoders: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Patterns of whole names, official and ours, by which tensors tell an architecture.

    `tower` is the name of the tower for people. A family's models alone have a tensor `tower_width`, whose last
    dimension is the width of the tower; in `tower_layer` a group holds a layer's number. `languages` has for each kind
    of text configuration the language model's name for people and a tensor of it; of several the first that is there
    counts. `embeddings` is the table of tokens, `layer` begins the names of a language layer, its number in a group,
    and `mlp_out` is the last matrix of the first layer's MLP.
    """

    tower: str
    tower_width: str
    tower_layer: str
    languages: Mapping[str, tuple[str, str]]
    embeddings: str
    layer: str
    mlp_out: str
