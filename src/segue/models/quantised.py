"""Linear layers whose weights take 8 or 4 bits, put in the place of ordinary ones once these are loaded.

On a GPU the layers are bitsandbytes'. On a CPU 4 bits are bitsandbytes' too, and save memory, not time. 8 bits on a CPU
are a small layer of our own over torch's integer product, because every library that was tried is slower there than no
quantisation at all unless the model is compiled (docs/models.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.errors import ConfigError

Bits = Literal["int8", "int4"]
BITS: tuple[Bits, ...] = ("int8", "int4")
LARGEST = 127  # of a signed byte, so that zero stays zero
_OUTLIER = 6.0  # inputs beyond it keep 16 bits; bitsandbytes' own default


class Int8Linear(nn.Module):
    """A linear layer with a signed byte per weight and a scale per output; inputs are made bytes row by row.

    Products and sums are whole numbers. Only on a CPU, and only forwards.

    Source: LLM.int8() (arXiv 2208.07339), its vector-wise part.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, inputs: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """The layer's output, in the type of its input."""
        rows = inputs.reshape(-1, self.in_features)
        step = rows.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / LARGEST
        whole = (rows / step).round_().to(torch.int8)
        output = torch._int_mm(whole, self.weight.t()).to(torch.float32).mul_(self.scale)
        output = output.mul_(step) if self.bias is None else torch.addcmul(self.bias.float(), output, step)
        return output.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


def check(bits: str, device: str) -> None:
    """Refuse what cannot be had on a device, before anything is loaded.

    Raises: ConfigError, for another word, a device without such layers, or where bitsandbytes is needed and missing.
    """
    kind = device.split(":")[0]
    if bits not in BITS:
        raise ConfigError(f"unknown quantisation {bits!r}; expected {' or '.join(BITS)}")
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"{bits} weights cannot be used on {device}; take the CPU, a CUDA card, or --dtype bf16")
    if kind == "cuda" or bits == "int4":
        _bitsandbytes(f"{bits} weights on {kind}")


def quantise(model: nn.Module, names: Sequence[str], bits: Bits, device: str) -> None:
    """Put quantised layers in the place of the named linear layers, which must lie on the CPU; each ends on `device`.

    Raises: ConfigError, as `check` does.
    """
    check(bits, device)
    for name in names:
        old: Any = model.get_submodule(name)
        if device.startswith("cpu") and bits == "int8":
            new: nn.Module = Int8Linear(old)
        else:
            new = (four_bits if bits == "int4" else _eight_bits)(old, device)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, new.requires_grad_(False))


def four_bits(old: nn.Linear, device: str | torch.device) -> nn.Module:
    """The layer in 4 bits (NF4) on a device; what it computes with is unpacked to the type that the layer had.

    Raises: ConfigError, where bitsandbytes is missing.
    """
    library = _bitsandbytes("4-bit weights")
    new = library.Linear4bit(
        old.in_features,
        old.out_features,
        bias=old.bias is not None,
        compute_dtype=old.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    new.weight = library.Params4bit(old.weight.data.cpu(), requires_grad=False, quant_type="nf4")
    new.bias = old.bias
    # the form into which a CPU packs them to infer has no way back to training, and would stay
    new.support_avx512bf16_for_cpu = False
    moved: nn.Module = new.to(device)
    return moved


def _eight_bits(old: nn.Linear, device: str) -> nn.Module:
    library = _bitsandbytes("8-bit weights")
    new = library.Linear8bitLt(
        old.in_features,
        old.out_features,
        bias=old.bias is not None,
        has_fp16_weights=False,
        threshold=_OUTLIER,
        device="meta",
    )
    new.weight = library.Int8Params(old.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    new.bias = old.bias
    moved: nn.Module = new.to(device)
    return moved


def _bitsandbytes(what: str) -> Any:
    """The module of bitsandbytes that has its layers.

    Raises: ConfigError, if it is not installed.
    """
    try:
        from bitsandbytes import nn as library
    except ImportError as error:
        raise ConfigError(f"{what} need bitsandbytes; install the extra: pip install 'segue[quant]'") from error
    return library
