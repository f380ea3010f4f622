"""Linear layers in the GPTQ layout: 4 bits per weight, eight of them in each number.

A packed layer holds what the files hold until it is first asked something. Then torch's own product with 4-bit weights
takes over where there is one for the device and type, and the weights change into its form. Elsewhere, and where
gradients pass, each call unpacks its weights to the type of the input and forgets them again, so that memory holds one
layer in full at a time.

Source: the files that AutoGPTQ writes (its first version), described in the README of Qwen-VL-Chat-Int4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from segue.errors import ConfigError

BITS, PER_NUMBER = 4, 8
PRODUCT_GROUPS = (32, 64, 128, 256)
TILES = 8
"""How many tiles of 16 inputs torch's product on CUDA takes at once."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")


class GptqLinear(nn.Module):
    """A linear layer of packed weights, with a bias whether or not the layer that was packed had one.

    `qweight` holds eight inputs of an output in a number, `qzeros` eight outputs of a group; `g_idx` names the group of
    each input. A stored zero is one less than it means.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int, group: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        groups = -(-in_features // group)
        if in_features % PER_NUMBER or out_features % PER_NUMBER:
            raise ConfigError(f"a layer of {in_features} inputs and {out_features} outputs cannot be packed by eights")
        self.register_buffer("qweight", torch.zeros(in_features // PER_NUMBER, out_features, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(groups, out_features // PER_NUMBER, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(groups, out_features))
        self.register_buffer("g_idx", torch.arange(in_features, dtype=torch.int32) // group)
        self.register_buffer("bias", torch.zeros(out_features))
        self._product: tuple[Tensor, Tensor] | None = None

    def unpacked(self, dtype: torch.dtype) -> Float[Tensor, "o i"]:
        """The weights, unpacked."""
        numbers = _nibbles(self.qweight, 0)
        zeros = _nibbles(self.qzeros, 1) + 1
        group = self.g_idx.long()
        return ((numbers - zeros[group]).to(dtype) * self.scales.to(dtype)[group]).T

    def forward(self, inputs: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The layer's output, in the type of its input."""
        bias = self.bias.to(inputs.dtype)
        if self._product is None and (inputs.requires_grad or not self._has_product(inputs)):
            return functional.linear(inputs, self.unpacked(inputs.dtype), bias)
        if self._product is None:
            self._product = self._changed(inputs)
        weights, scales = self._product
        rows = inputs.reshape(-1, self.in_features)
        multiply = torch._weight_int4pack_mm if inputs.is_cuda else torch._weight_int4pack_mm_for_cpu
        output: Tensor = multiply(rows, weights, self._group, scales)
        return (output + bias).view(*inputs.shape[:-1], self.out_features)

    @property
    def _group(self) -> int:
        return self.in_features // len(self.scales)

    def _has_product(self, inputs: Float[Tensor, "*b i"]) -> bool:
        """Whether torch multiplies such weights with such inputs: groups of neighbours, and sizes that fit."""
        order = torch.arange(self.in_features, device=self.g_idx.device) // max(self._group, 1)
        if self._group not in PRODUCT_GROUPS or self.out_features % 16 or not torch.equal(self.g_idx.long(), order):
            return False
        if inputs.is_cuda:
            fits = self.in_features % (16 * TILES) == 0 and inputs.dtype == torch.bfloat16
            return fits and torch.cuda.get_device_capability(inputs.device) >= (8, 0)
        return inputs.device.type == "cpu"

    def _changed(self, inputs: Float[Tensor, "*b i"]) -> tuple[Tensor, Tensor]:
        """Weights and scales in the form of torch's product; the packed weights are given up for it.

        It takes (n - 8) * scale + shift for a weight of the number n.
        """
        numbers = _nibbles(self.qweight, 0).T.contiguous()
        scales = self.scales.to(inputs.dtype)
        shifts = scales * (8 - _nibbles(self.qzeros, 1) - 1).to(inputs.dtype)
        if inputs.is_cuda:
            pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
            weights = torch._convert_weight_to_int4pack(pairs, TILES)
        else:
            weights = torch._convert_weight_to_int4pack_for_cpu(numbers, TILES)
        self.qweight = self.qweight[:0]
        return weights, torch.stack([scales, shifts], -1).contiguous()


def _nibbles(packed: Int[Tensor, "r c"], axis: int) -> Int[Tensor, "k m"]:
    """The eight numbers of 0 to 15 in each, lowest bits first, laid out along an axis."""
    shifts = torch.arange(0, BITS * PER_NUMBER, BITS, device=packed.device, dtype=torch.int32)
    apart = (packed.unsqueeze(axis + 1) >> (shifts[:, None] if axis == 0 else shifts)) & 15
    return apart.flatten(axis, axis + 1)


def pack(weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, group: int) -> GptqLinear:
    """A layer packed by rounding to the nearest, symmetrically: the layout of GPTQ without its search."""
    out_features, in_features = weight.shape
    layer = GptqLinear(in_features, out_features, group).to(weight.device)
    index = layer.g_idx.long()
    largest = torch.zeros(int(index.max()) + 1, out_features, device=weight.device)
    largest.scatter_reduce_(0, index[:, None].expand(-1, out_features), weight.T.abs().float(), "amax")
    scales = (largest / 7).clamp_min(torch.finfo(torch.float16).tiny).to(torch.float16)
    numbers = ((weight.T.float() / scales.float()[index]).round() + 8).clamp(0, 15).int()
    layer.qweight.copy_(_packed(numbers, 0))
    layer.qzeros.copy_(_packed(torch.full_like(scales, 7, dtype=torch.int32), 1))
    layer.scales = scales
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def _packed(numbers: Int[Tensor, "k m"], axis: int) -> Int[Tensor, "r c"]:
    shifts = torch.arange(0, BITS * PER_NUMBER, BITS, device=numbers.device, dtype=torch.int64)
    apart = numbers.long().unflatten(axis, (-1, PER_NUMBER))
    whole = (apart << (shifts[:, None] if axis == 0 else shifts)).sum(axis + 1)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).int()


def pack_layers(layers: Iterable[nn.Module], group: int) -> None:
    """Put empty packed layers in the place of the linear layers of a language model, to be filled from files."""
    for layer in layers:
        for name, part in list(layer.named_modules()):
            owner, _, last = name.rpartition(".")
            if last in LAYERS and isinstance(part, nn.Linear):
                empty = GptqLinear(part.in_features, part.out_features, group)
                setattr(layer.get_submodule(owner), last, empty)


def group_size(quantization: Mapping[str, Any] | None) -> int | None:
    """How many inputs share a scale, from a config.json's `quantization_config`; `None` without one.

    Raises: ConfigError, for another method or number of bits.
    """
    if quantization is None:
        return None
    method, bits = quantization.get("quant_method", "gptq"), quantization.get("bits")
    if method != "gptq" or bits != BITS:
        raise ConfigError(
            f"config.json says the weights are quantised by {method!r} in {bits} bits; expected gptq in {BITS} bits"
        )
    return int(quantization.get("group_size", 128))
