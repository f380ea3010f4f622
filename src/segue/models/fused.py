"""Linear layers that do in one pass what follows their product, where a CPU computes in bfloat16.

PyTorch writes the bias out over the whole result before it multiplies, and reads the result again for GELU. In layers
as wide and as short as those of image encoders, that takes as long as half the product.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import GELUActivation

LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""The operation, which is none of PyTorch's public ones and not in every build."""


class FusedLinear(nn.Linear):
    """A linear layer with a bias. Its results are those of `nn.Linear`, bit for bit."""

    def forward(self, states: Float[Tensor, "... d"]) -> Float[Tensor, "... e"]:
        """The layer's product and its bias."""
        return self.fused(states, "none", "") if self.fuses(states) else super().forward(states)

    def fuses(self, states: Tensor) -> bool:
        """Whether there is one pass for these states: it has no gradient."""
        here = states.device.type == self.weight.device.type == "cpu"
        return (
            here
            and states.dtype == self.weight.dtype == torch.bfloat16
            and not (torch.is_grad_enabled() and (states.requires_grad or self.weight.requires_grad))
            and _is_supported()
        )

    def fused(self, states: Float[Tensor, "... d"], activation: str, algorithm: str) -> Float[Tensor, "... e"]:
        """Product, bias and activation, by oneDNN's names."""
        found: Float[Tensor, "... e"] = LINEAR(states, self.weight, self.bias, activation, [], algorithm)
        return found


def fuse(root: nn.Module) -> None:
    """Make every plain linear layer with a bias below a module a `FusedLinear`, with the weights it has."""
    for part in root.modules():
        if type(part) is nn.Linear and part.bias is not None:
            part.__class__ = FusedLinear


def activated(layer: nn.Module, activation: nn.Module, states: Float[Tensor, "... d"]) -> Float[Tensor, "... e"]:
    """What a layer and then an activation make of states. In one pass the product is not rounded before GELU."""
    if type(layer) is FusedLinear and type(activation) is GELUActivation and layer.fuses(states):
        return layer.fused(states, "gelu", "none")
    found: Float[Tensor, "... e"] = activation(layer(states))
    return found


@cache
def _is_supported() -> bool:
    return LINEAR is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
