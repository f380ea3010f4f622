"""What this machine can do at best, measured, and what a piece of work asks of it, counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segue.bench.clock import seconds_of
from segue.bench.report import MachineLimits
from segue.models import fused

COPIED = {"cuda": 2**32, "cpu": 2**28}  # bytes, far more than any cache holds
SIDE = {"cuda": 8192, "cpu": 2048}
WARM_UPS, REPEATS = 2, 5
ATTENTIONS = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
)


def measured(device: torch.device, dtype: torch.dtype) -> MachineLimits:
    """The limits of a device in a precision; on a CPU, of as many threads as PyTorch uses. The best of a few times."""
    return MachineLimits(_bandwidth(device), _products(device, dtype))


def _bandwidth(device: torch.device) -> float:
    # never zeros: some hardware is quicker with them than with any data
    source = torch.randint(0, 255, (COPIED[_kind(device)],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(partial(target.copy_, source), device)


def _products(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDE[_kind(device)]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / _best(partial(torch.mm, left, right, out=out), device)


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"


def _best(job: Callable[[], object], device: torch.device) -> float:
    for _ in range(WARM_UPS):
        job()
    return min(seconds_of(job, device) for _ in range(REPEATS))


def flops_of(job: Callable[[], object]) -> float:
    """Operations of the matrix products, convolutions and attention in a piece of work, which is run once for it."""
    known = dict.fromkeys(ATTENTIONS, _attention) | {fused.LINEAR: _linear}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        job()
    return float(counter.get_total_flops())


def _linear(states: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * math.prod(states) * int(weight[0])


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    # the counter hands over shapes: batch, heads, length, width. PyTorch's own count lacks the kernel for CPUs, and
    # refuses queries that share keys, which cost as much as if they had keys of their own
    *outer, queries, width = query
    products: int = 2 * queries * key[-2] * (width + value[-1])
    for number in outer:
        products *= number
    return products


def read_per_token(language_model: nn.Module) -> int:
    """Bytes of the weights that reading one token needs: all but the table of embeddings, of which it needs a row."""
    table = language_model.get_input_embeddings().weight  # type: ignore[operator]
    total = sum(tensor.nbytes for tensor in language_model.parameters())
    return total - table.nbytes + table[0].nbytes
