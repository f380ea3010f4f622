"""Attention of a frame to what is remembered of objects: the weights of the library's layers, our own way through them.

The library's way does for every object what depends on the frame alone, its attention to itself in the first layer, and
writes a table of turns out once for each map. Here the first is done once for all objects, and keys are turned in one
multiplication of complex numbers, as in SAM 2 itself.

Letters in shapes: f frames (one for all objects, or one for each), n objects, c cells of a frame, k keys, d width, m
width of a memory map.

Source: SAM 2 (arXiv 2408.00714).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMemoryAttention, Sam2VideoRoPEAttention


def attend(
    attention: Sam2VideoMemoryAttention,
    states: Float[Tensor, "f c d"],
    memory: Float[Tensor, "n k m"],
    places: Float[Tensor, "1 k m"],
    num_pointers: int,
    pool: int = 1,
) -> Float[Tensor, "n c d"]:
    """A frame's states after they have attended to themselves and to each object's memory, layer by layer.

    `places` is what tells the keys of `memory` apart beside what they hold. The last `num_pointers` keys have no place
    in the frame and are not turned. Each of the others stands for `pool` times `pool` cells: it has the place of their
    middle, and counts as often.
    """
    turns, pooled = _turns(attention, states, 1), _turns(attention, states, pool)
    maps = (memory.shape[1] - num_pointers) // len(pooled)
    key_turns = torch.cat([pooled.repeat(maps, 1), pooled.new_ones(num_pointers, pooled.shape[1])])
    keys = memory + places
    bias = None
    if pool > 1:
        bias = states.new_zeros(1, keys.shape[1])
        bias[:, keys.shape[1] - num_pointers :] = -2 * math.log(pool)
    for layer in attention.layers:
        own = layer.layer_norm1(states)
        states = states + layer.dropout1(_attend(layer.self_attn, own, own, own, (turns, turns)))
        found = _attend(layer.cross_attn_image, layer.layer_norm2(states), keys, memory, (turns, key_turns), bias)
        states = states + layer.dropout2(found)
        inner = layer.dropout(layer.activation(layer.linear1(layer.layer_norm3(states))))
        states = states + layer.dropout3(layer.linear2(inner))
    output: Float[Tensor, "n c d"] = attention.layer_norm(states)
    return output


def _turns(attention: Sam2VideoMemoryAttention, like: Tensor, pool: int) -> Complex[Tensor, "c half"]:
    """By how much each pair of a query's numbers is turned at each cell, as complex numbers of length 1; with a `pool`
    above 1, in the middle of each square of so many cells a side."""
    height, width = attention.config.memory_attention_rope_feat_sizes
    grid = attention.position_ids.T.unflatten(1, (height, width)).float()
    cosines, sines = attention.rotary_emb(like, functional.avg_pool2d(grid, pool).flatten(1).T)
    return torch.complex(cosines[0, :, ::2], sines[0, :, ::2])


def _attend(
    layer: Sam2VideoRoPEAttention,
    query: Float[Tensor, "f c d"],
    key: Float[Tensor, "n k w"],
    value: Float[Tensor, "n k w"],
    turns: tuple[Complex[Tensor, "c half"], Complex[Tensor, "k half"]],
    bias: Float[Tensor, "1 k"] | None = None,
) -> Float[Tensor, "n c d"]:
    heads = (layer.num_attention_heads, layer.head_dim)
    queries = _turned(layer.q_proj(query).unflatten(2, heads).transpose(1, 2), turns[0])
    keys = _turned(layer.k_proj(key).unflatten(2, heads).transpose(1, 2), turns[1])
    values = layer.v_proj(value).unflatten(2, heads).transpose(1, 2)
    found = functional.scaled_dot_product_attention(
        queries.expand(len(keys), -1, -1, -1),
        keys,
        values,
        attn_mask=bias,
        dropout_p=layer.dropout_p if layer.training else 0.0,
        scale=layer.scaling,
    )
    output: Float[Tensor, "n c d"] = layer.o_proj(found.transpose(1, 2).flatten(2))
    return output


def _turned(states: Float[Tensor, "n h k e"], turns: Complex[Tensor, "k half"]) -> Float[Tensor, "n h k e"]:
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(states)
