"""Qwen-7B as a Qwen2, with what it does beyond the length that it was trained on.

A prompt longer than that stretches the rotary base (dynamic NTK), by a factor that the prompt's length alone decides
and that its whole generation keeps; and a query that stands beyond it is scaled by the logarithm of its place. Both
belong to a row and travel with its positions, so that the model keeps no state and rows of any age share a step.

Letters in shapes: b rows, s tokens, w width of a head.

Source: the `modeling_qwen.py` that comes with Qwen-VL's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, apply_rotary_pos_emb, eager_attention_forward

MOST_POSITIONS = 32767
"""Places that the original has a factor for; it fails beyond them."""

_PLACES = 1 << 20
_LEVELS = 16


def stretch_level(length: int, trained: int) -> int:
    """How often a prompt of that length doubles the trained one, rounded up; 0 up to the trained length."""
    return max(math.ceil(math.log2(length / trained)), 0) if length else 0


def stretched(positions: Int[Tensor, "b s"], trained: int) -> Int[Tensor, "b s"]:
    """Positions of whole prompts that say along with each place how far its row's rotary base is stretched.

    Adding to such a position moves its place and keeps the stretch.
    """
    levels = [stretch_level(int(longest) + 1, trained) for longest in positions.amax(1)]
    return positions + positions.new_tensor(levels)[:, None] * _PLACES


def places(positions: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Where tokens stand, whatever their row's stretch."""
    return positions % _PLACES


class StretchedRotary(nn.Module):
    """Rotary angles at the base that each row's positions ask for."""

    inverse_frequencies: Tensor
    rope_type = "dynamic_ntk"

    def __init__(self, config: Qwen2Config):
        super().__init__()
        width, base = config.head_dim, config.rope_parameters["rope_theta"]
        steps = torch.arange(0, width, 2, dtype=torch.float) / width
        factors = [2.0 ** (level + 1) - 1 for level in range(_LEVELS)]
        rows = [1.0 / ((base * factor ** (width / (width - 2))) ** steps) for factor in factors]
        self.register_buffer("inverse_frequencies", torch.stack(rows), persistent=False)

    def forward(
        self, states: Float[Tensor, "*_"], positions: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b s w"], Float[Tensor, "b s w"]]:
        """Cosines and sines in the type of the states, computed in float32."""
        levels = positions.amax(-1) // _PLACES
        frequencies = self.inverse_frequencies.float()[levels]
        angles = places(positions)[..., None].float() * frequencies[:, None, :]
        whole = torch.cat([angles, angles], dim=-1)
        return whole.cos().to(states.dtype), whole.sin().to(states.dtype)


class ScaledAttention(Qwen2Attention):
    """Attention whose queries grow with the logarithm of their place, beyond the trained length and not in training."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The library's own attention with one factor more; the names are the library's."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (project(hidden_states).view(shape).transpose(1, 2) for project in projections)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        positions = kwargs.get("position_ids")
        if positions is not None and self.config.use_logn_attn and not self.training:
            query = query * log_factors(positions, self.config.max_position_embeddings)[:, None, :, None].to(query)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=None,
            **kwargs,
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def log_factors(positions: Int[Tensor, "b s"], trained: int) -> Float[Tensor, "b s"]:
    """The factor of the query at each place: 1 within the trained length, then the logarithm to its base."""
    return ((places(positions) + 1).float().log() / math.log(trained)).clamp(min=1.0)


class QwenForCausalLM(Qwen2ForCausalLM):
    """Qwen2 with the original Qwen's behaviour beyond `max_position_embeddings`, which is the trained length here."""

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        self.model.rotary_emb = StretchedRotary(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = ScaledAttention(config, index)
        self.post_init()
