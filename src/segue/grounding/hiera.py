"""Hiera, SAM 2's image encoder: the weights of the library's blocks, our own way through what takes its time.

Beside attention the library computes weights of each cell's heads to one another, which nothing uses, left out here.

Source: SAM 2 (arXiv 2408.00714), Hiera (arXiv 2306.00989).
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers.models.sam2.modeling_sam2 import (
    Sam2FeedForward,
    Sam2HieraDetModel,
    Sam2MultiScaleAttention,
    Sam2PatchEmbeddings,
    do_pool,
)

from segue.models.fused import activated, fuse


class _PatchEmbeddings(Sam2PatchEmbeddings):
    def forward(self, pixel_values: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b h w d"]:
        # sums keep the layout of what they add to: left as the convolution has it, it is turned in every block
        output: Float[Tensor, "b h w d"] = super().forward(pixel_values).contiguous()
        return output


class _Attention(Sam2MultiScaleAttention):
    def forward(self, hidden_states: Float[Tensor, "b h w d"], **_: Any) -> Float[Tensor, "b h2 w2 e"]:
        (batch, height, width), heads = hidden_states.shape[:3], self.num_attention_heads
        query, key, value = self.qkv(hidden_states).reshape(batch, height * width, 3, heads, -1).unbind(2)
        if self.query_stride:
            query = do_pool(query.reshape(batch, height, width, -1), self.query_stride)
            height, width = query.shape[1:3]
            query = query.reshape(batch, height * width, heads, -1)
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        found = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        output: Float[Tensor, "b h2 w2 e"] = self.proj(found.transpose(1, 2).reshape(batch, height, width, -1))
        return output


class _FeedForward(Sam2FeedForward):
    def forward(self, hidden_states: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        output: Float[Tensor, "b h w d"] = self.proj_out(activated(self.proj_in, self.activation, hidden_states))
        return output


def take_over(backbone: Sam2HieraDetModel) -> None:
    """Make the library's blocks compute our way, with the weights they have."""
    fuse(backbone)
    backbone.patch_embed.__class__ = _PatchEmbeddings
    for block in backbone.blocks:
        block.attn.__class__, block.mlp.__class__ = _Attention, _FeedForward
