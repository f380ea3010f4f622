"""Keys and values of what a language model has read, kept in 8 bits: half the memory of a long prompt in 16.

Letters in shapes: b rows, g heads of keys, k tokens in the cache, w a head's width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SCALE = 4
"""Bytes of a scale, which stand behind the numbers that it belongs to."""


def packed(states: Float[Tensor, "b g k w"]) -> Int8[Tensor, "b g k _"]:
    """Keys or values in 8 bits with a float32 scale for each token of each head; zeros stay zeros.

    The scale's bytes stand behind the numbers, so that what is cut, joined or padded along the first three axes, as
    rows and prompts are, keeps each scale with its numbers; padding of zeros is zeros.
    """
    exact = states.float()
    scale = exact.abs().amax(-1, keepdim=True) / 127
    steps = (exact / scale.where(scale > 0, torch.ones_like(scale))).round().to(torch.int8)
    return torch.cat([steps, scale.view(torch.int8)], -1)


def unpacked(parts: Int8[Tensor, "b g k _"], dtype: torch.dtype) -> Float[Tensor, "b g k w"]:
    """What `packed` was given, to within half a step: 1 / 254 of the largest number of the token in the head."""
    scale = parts[..., -SCALE:].contiguous().view(torch.float32)
    return (parts[..., :-SCALE] * scale).to(dtype)


class QuantisedLayer(DynamicLayer):
    """Keys and values of one layer, packed. All that attention sees of them was packed, whenever it was read, so that a
    prompt is read in the same way in whatever pieces.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add what was just read; returns all there is, as the model computes. What another layer of this kind holds is
        taken as it is.
        """
        if key_states.dtype == torch.int8:
            return super().update(key_states, value_states)
        super().update(packed(key_states), packed(value_states))
        return unpacked(self.keys, key_states.dtype), unpacked(self.values, value_states.dtype)


class QuantisedCache(DynamicCache):
    """The cache of a language model whose keys and values are kept in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = QuantisedLayer
