"""Qwen-VL's eyes: the ViT-bigG tower and the resampler that makes a fixed number of visual tokens of its patches.

Letters in shapes: p images, n patches of an image, c width of the tower, q queries, d width of the language model.

Source: the `visual.py` that comes with Qwen-VL's checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from segue.errors import ConfigError

EPSILON = 1e-6  # of every layer norm in here
HEAD_WIDTH = 128  # of the resampler


class QwenVLVisionConfig(PreTrainedConfig):
    """Sizes of the tower and the resampler.

    `grid` is the side of the table of learned positions, which is interpolated to the patches of any square image;
    `num_queries` is how many visual tokens an image becomes; `output_width` the width of the language model.
    """

    model_type = "segue_qwen_vl_vision"

    def __init__(  # noqa: PLR0913  a size each
        self,
        image_size: int = 448,
        patch_size: int = 14,
        hidden_size: int = 1664,
        num_hidden_layers: int = 48,
        num_attention_heads: int = 16,
        intermediate_size: int = 8192,
        output_width: int = 4096,
        num_queries: int = 256,
        grid: int = 16,
        **kwargs: Any,
    ):
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.output_width = output_width
        self.num_queries = num_queries
        self.grid = grid
        super().__init__(**kwargs)


def spread_positions(table: Float[Tensor, "s c"], count: int) -> Float[Tensor, "n c"]:
    """A square table of positions at another number of cells: bicubic without antialiasing, computed in float32.

    Raises: ConfigError, if table or count is no square.
    """
    side, target = math.isqrt(len(table)), math.isqrt(count)
    if side * side != len(table) or target * target != count:
        raise ConfigError(f"{len(table)} positions cannot be spread over {count} cells; both must be square numbers")
    if side == target:
        return table
    # PARITY(bicubic_positions): antialiasing has another cubic coefficient and would differ even when enlarging
    grid = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    larger = functional.interpolate(grid, (target, target), mode="bicubic", align_corners=False)
    return larger.permute(0, 2, 3, 1).reshape(count, -1).to(table.dtype)


class Attention(nn.Module):
    """Attention over all of its keys, each projection with a bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, query: Float[Tensor, "p q c"], key: Float[Tensor, "p n c"], value: Float[Tensor, "p n c"]
    ) -> Float[Tensor, "p q c"]:
        """What each query gathers from the values."""
        pairs = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        split = (project(part).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, part in pairs)
        gathered = functional.scaled_dot_product_attention(*split)
        return self.out_proj(gathered.transpose(1, 2).flatten(2))


class Block(GradientCheckpointingLayer):
    """One pre-norm layer of the tower."""

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attention = Attention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, hidden: Float[Tensor, "p n c"]) -> Float[Tensor, "p n c"]:
        """States after the layer."""
        normed = self.norm1(hidden)
        hidden = hidden + self.attention(normed, normed, normed)
        return hidden + self.fc2(functional.gelu(self.fc1(self.norm2(hidden))))


class VisionTower(nn.Module):
    """Patches of square images to states. There is no class token and no norm at the end."""

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__()
        width = config.hidden_size
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.positions = nn.Parameter(torch.randn(config.grid**2, width) * width**-0.5)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def embed(self, pixels: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "p n c"]:
        """What the first layer reads: patches row by row with their positions, normed."""
        patches = self.patches(pixels.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        return self.norm(patches + spread_positions(self.positions, patches.shape[1]))

    def forward(self, pixels: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "p n c"]:
        """States of the patches after the last layer."""
        hidden = self.embed(pixels)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Resampler(nn.Module):
    """A fixed number of learned queries that read an image's patches, and the projection to the language model.

    Positions are added to queries and keys, not to values. They are stored, not learned: those of the keys are the same
    table spread over the patches.
    """

    positions: Tensor

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__()
        width = config.output_width
        if width % HEAD_WIDTH:
            raise ConfigError(f"the resampler's width {width} is not a multiple of its heads' width {HEAD_WIDTH}")
        self.query = nn.Parameter(torch.empty(config.num_queries, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        # a buffer, so that no choice of what to train reaches it
        self.register_buffer("positions", grid_positions(math.isqrt(config.num_queries), width))
        # where the widths agree the original has no projection
        same = config.hidden_size == width
        self.project = nn.Identity() if same else nn.Linear(config.hidden_size, width, bias=False)
        self.query_norm = nn.LayerNorm(width, EPSILON)
        self.key_norm = nn.LayerNorm(width, EPSILON)
        self.attention = Attention(width, width // HEAD_WIDTH)

    def forward(self, states: Float[Tensor, "p n c"]) -> Float[Tensor, "p q d"]:
        """What the queries read."""
        values = self.key_norm(self.project(states))
        keys = values + spread_positions(self.positions, states.shape[1])
        queries = self.query_norm(self.query) + self.positions
        return self.attention(queries.expand(len(states), -1, -1), keys, values)


class Connector(nn.Module):
    """From the tower's states to features as wide as the language model: resampler, norm, projection."""

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__()
        width = config.output_width
        self.resampler = Resampler(config)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, states: Float[Tensor, "p n c"]) -> Float[Tensor, "p q d"]:
        """Features of each image, one per query."""
        return self.output(self.norm(self.resampler(states)))


def grid_positions(side: int, width: int) -> Float[Tensor, "q d"]:
    """Sines and cosines of a square grid's cells, row by row: those of the column first, then those of the row.

    They are what a new resampler begins with; a checkpoint brings its own.
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    codes = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = codes.repeat(side, 1), codes.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()
