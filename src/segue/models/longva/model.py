"""LongVA's modules: a CLIP tower read before its last layer, a projector, pooling, and Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from segue.errors import ConfigError, DataError
from segue.models.protocol import (
    PUBLISHED_TILES,
    Batch,
    Point,
    Prompt,
    forward_loss,
    merge_visual_embeddings,
    positions,
    visual_features,
)

TILES_AT_ONCE = 32
"""Tiles that the tower reads together; always the same number, for another one moves the last bits of a feature."""

CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 768,
}
"""The tower of every released LongVA; their folders do not say it."""

Pooling = Literal["average", "max"]


class LongVAConfig(PreTrainedConfig):
    """Sizes of a LongVA: tower, language model, and how tiles become visual tokens.

    `select_layer` counts the tower's states from its embeddings, -1 the last; `pool` the side of the square of patches
    that become one token of a frame or an image's tile, `pool_mode` how. `resolutions` are those in which images are
    cut into tiles, as (width, height). `vocabulary` is how many rows of the embeddings are tokens.
    """

    model_type = "segue_longva"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": Qwen2Config}

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        select_layer: int = -2,
        pool: int = 2,
        pool_mode: Pooling = "average",
        resolutions: Sequence[Sequence[int]] = (),
        **kwargs: Any,
    ):
        self.vision_config: Any = vision_config
        self.text_config: Any = text_config
        if not isinstance(vision_config, PreTrainedConfig):
            self.vision_config = CLIPVisionConfig(**(vision_config or CLIP_L_336))
        if not isinstance(text_config, PreTrainedConfig):
            fields = {name: value for name, value in (text_config or {}).items() if name != "model_type"}
            self.text_config = Qwen2Config(**fields)
        self.select_layer = select_layer
        self.pool = pool
        self.pool_mode = pool_mode
        self.resolutions = [list(resolution) for resolution in resolutions]
        self.vocabulary: int = kwargs.pop("vocabulary", None) or self.text_config.vocab_size
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    @property
    def side(self) -> int:
        """Pixels along a tile's side: 336."""
        return int(self.vision_config.image_size)

    @property
    def grid(self) -> int:
        """Patches along a tile's side: 24."""
        return int(self.side // self.vision_config.patch_size)

    @property
    def frame_tokens(self) -> int:
        """Visual tokens of a frame or of an image's tile: 144."""
        return (self.grid // self.pool) ** 2

    @property
    def tower_layers(self) -> int:
        """How many of the tower's layers decide its features."""
        count = int(self.vision_config.num_hidden_layers)
        return self.select_layer if self.select_layer >= 0 else count + 1 + self.select_layer

    def offered(self, max_tiles: int = PUBLISHED_TILES) -> list[tuple[int, int]]:
        """The resolutions that images may have, as (width, height): all at 12 tiles, without the largest below."""
        counts = {(width, height): width * height // self.side**2 for width, height in self.resolutions}
        most = max(counts.values(), default=0) * max_tiles // PUBLISHED_TILES
        least = min(counts.values(), default=0)
        return [resolution for resolution, count in counts.items() if count <= max(most, least)]

    def largest_image(self, max_tiles: int = PUBLISHED_TILES) -> tuple[int, int]:
        """Patches, class tokens included, and visual tokens of an image in its most tiles."""
        if not self.resolutions:
            return self.grid**2 + 1, self.grid**2
        tiles = max(width * height // self.side**2 for width, height in self.offered(max_tiles))
        return tiles * (self.grid**2 + 1), tiles * self.frame_tokens

    def largest_frame(self) -> tuple[int, int]:
        """Patches, class tokens included, and visual tokens of a frame."""
        return self.grid**2 + 1, self.frame_tokens


class LongVAMLLM(PreTrainedModel):
    """Tower, projector and language model, joined at the embeddings of the visual tokens."""

    config_class = LongVAConfig
    base_model_prefix = "mllm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["CLIPEncoderLayer", "Qwen2DecoderLayer"]

    def __init__(self, config: LongVAConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.width = width
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.projector = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def tower(
        self, pixels: Float[Tensor, "p 3 h w"], grids: Int[Tensor, "i 2"] | None = None
    ) -> Float[Tensor, "p n c"]:
        """Patch states of the selected layer, without the class token. Layers above it are not run."""
        pieces = [self._tower(piece.to(self.dtype)) for piece in pixels.split(TILES_AT_ONCE)]
        return torch.cat(pieces)

    def _tower(self, pixels: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "p n c"]:
        hidden = self.vision_tower.pre_layrnorm(self.vision_tower.embeddings(pixels))
        for layer in self.vision_tower.encoder.layers[: self.config.tower_layers]:
            hidden = layer(hidden, None)
        patches: Float[Tensor, "p n c"] = hidden[:, 1:]
        return patches

    def project(self, states: Float[Tensor, "p n c"], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "v d"]:
        """Visual features of tower states: projector first, then pooling, which do not commute.

        `grids` say of each medium how many tiles it has and how many patches along each axis become one token; without
        them all tiles are pooled as frames are.
        """
        plans = [(len(states), self.config.pool)] if grids is None else grids.tolist()
        if sum(count for count, _ in plans) != len(states):
            raise DataError(f"{len(states)} tiles came with grids for {sum(count for count, _ in plans)}")
        features, start = [], 0
        for count, pool in plans:
            for piece in states[start : start + count].split(TILES_AT_ONCE):
                features.append(pooled(self.projector(piece), pool, self.config.pool_mode).flatten(0, 1))
            start += count
        return torch.cat(features)

    def below(self, point: Point) -> dict[str, Tensor]:
        """The weights that features at this point depend on, under names relative to their part.

        Layers of the tower that are not reached are none of them.
        """
        unused = tuple(
            f"encoder.layers.{layer}."
            for layer in range(self.config.tower_layers, self.config.vision_config.num_hidden_layers)
        )
        used = {
            name: tensor
            for name, tensor in self.vision_tower.state_dict().items()
            if not name.startswith((*unused, "post_layernorm.")) and tensor.is_floating_point()
        }
        if point == "tower":
            return used
        return used | {f"projector.{name}": tensor for name, tensor in self.projector.state_dict().items()}

    def prompt(self, batch: Batch) -> Prompt:
        """Embeddings with the features written over the visual tokens."""
        # the token that holds their place need have no row
        ids = batch.input_ids if batch.visual_places is None else batch.input_ids.masked_fill(batch.visual_places, 0)
        merged = merge_visual_embeddings(self.get_input_embeddings()(ids), batch, visual_features(self, batch))
        return Prompt(merged, batch.attention, positions(batch.attention))

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
        """Mean cross-entropy over the labelled tokens of the batch (`None` without labels), and the last states."""
        return forward_loss(self, batch)

    def head(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Scores of all tokens to come. Rows of the embeddings that are no tokens are never chosen."""
        scores: Float[Tensor, "... v"] = self.language_model.lm_head(hidden)
        if self.config.vocabulary < scores.shape[-1]:
            # PARITY(longva_spare_rows): the original cuts the embeddings to the tokenizer's length when it loads
            scores[..., self.config.vocabulary :] = -torch.inf
        return scores


def pooled(features: Float[Tensor, "p n d"], pool: int, mode: str) -> Float[Tensor, "p m d"]:
    """Squares of neighbouring patches as one token each; a row or column too many is left out. 1 pools nothing.

    Raises: ConfigError, for an unknown mode.
    """
    if mode not in ("average", "max"):
        raise ConfigError(f"unknown pooling {mode!r} in config.json (mm_spatial_pool_mode); known: average, max")
    if pool == 1:
        return features
    count, number, width = features.shape
    side = round(number**0.5)
    grid = features.view(count, side, side, width).permute(0, 3, 1, 2)
    small = functional.avg_pool2d(grid, pool) if mode == "average" else functional.max_pool2d(grid, pool)
    return small.flatten(2).transpose(1, 2)
