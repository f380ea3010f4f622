"""What do the image encoders reach of a CPU's matrix products in bfloat16, beside the library's own modules?

    python benchmarks/encoders.py [--encoders sam2,internvit] [--repeats 2]

InternViT on 5 tiles and SAM 2's Hiera on one frame, of Sa2VA-1B in its real size with random weights, run in turns as
the library has them and as Segue runs them. Told are the share of a square product's rate, and how long the linear
layers' products and attention take alone, each shape by itself with its buffers warm: what is left for all else.

ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 tells a CPU without AMX. The exit code is 1 if Segue's way is slower.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segue.bench.clock import seconds_of
from segue.bench.limits import flops_of, measured
from segue.checkpoints.zoo import config_of
from segue.grounding.sam2 import LanguageSam2
from segue.models.fused import LINEAR
from segue.models.internvl.family import InternVLMLLM

CPU = torch.device("cpu")
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Shapes(TorchDispatchMode):
    """Counts products and attention by the shapes that they are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear: Counter[tuple[Any, ...]] = Counter()
        self.attention: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket is LINEAR:
            self.linear[args[0].shape.numel() // args[0].shape[-1], *args[1].shape] += 1
        elif function.overloadpacket is ATTENTION:
            self.attention[args[0].shape, args[1].shape] += 1
        return function(*args, **(kwargs or {}))

    def alone(self) -> tuple[float, float]:
        """Seconds of all products, and of all attention, each shape on its own."""

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.bfloat16)

        products = attention = 0.0
        for (rows, out, width), times in self.linear.items():
            states, weight = random(rows, width), random(out, width)
            products += times * least(lambda states=states, weight=weight: nn.functional.linear(states, weight))
        for (query, key), times in self.attention.items():
            one, other = random(*query), random(*key)
            attention += times * least(
                lambda one=one, other=other: nn.functional.scaled_dot_product_attention(one, other, other)
            )
        return products, attention


def least(job: Callable[[], object]) -> float:
    job()
    return min(seconds_of(job, CPU) for _ in range(2))


def encoder(name: str) -> tuple[nn.Module, Callable[[], object]]:
    """A module with our ways below it, and a job that runs it."""
    config = config_of("Sa2VA-1B")
    torch.set_default_dtype(torch.bfloat16)
    try:
        if name == "sam2":
            grounder = LanguageSam2(config.sam2_config, two_decoders=False).eval().requires_grad_(False)
            pixels = torch.randn(1, 3, grounder.side, grounder.side)
            return grounder.sam2.vision_encoder, lambda: grounder.encode(pixels)
        config.mllm_config.text_config.num_hidden_layers = 1
        tower = InternVLMLLM(config.mllm_config).vision_tower.eval().requires_grad_(False)
        pixels = torch.randn(5, 3, config.mllm_config.tile_side, config.mllm_config.tile_side)
        return tower, lambda: tower(pixels)
    finally:
        torch.set_default_dtype(torch.float32)


def told(name: str, repeats: int) -> bool:
    """Runs an encoder both ways in turns and prints what that takes; whether ours is slower."""
    root, job = encoder(name)
    ours = {part: type(part) for part in root.modules() if type(part).__module__.startswith("segue")}
    seconds: dict[str, list[float]] = {"the library's": [], "Segue's": []}
    for _ in range(repeats):
        for way, taken in seconds.items():
            for part, kind in ours.items():
                part.__class__ = kind if way == "Segue's" else kind.__base__
            taken.append(seconds_of(job, CPU))
    limit, flops = measured(CPU, torch.bfloat16).products, flops_of(job)
    with Shapes() as shapes:
        job()
    products, attention = shapes.alone()
    alone, (before, now) = products + attention, (min(taken) for taken in seconds.values())
    print(f"\n{name}: {flops / 1e12:.2f} TFLOP, a square product's rate {limit / 1e12:.2f} TFLOP/s")
    for way, taken in seconds.items():
        print(f"  {way:14} {min(taken):6.2f} CPU s: {flops / min(taken) / limit:.1%} of the rate")
    print(f"  {before / now:.2f}x; products alone {products:.2f} s and attention alone {attention:.2f} s")
    print(f"  are {alone / now:.0%} of Segue's time; alone they reach {flops / alone / limit:.1%} of the rate")
    return now > before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoders", default="sam2,internvit")
    parser.add_argument("--repeats", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    isa = " ".join(f"{name}={value} " for name, value in os.environ.items() if name == "ONEDNN_MAX_CPU_ISA")
    print(
        f"$ {f'ONEDNN_MAX_CPU_ISA={isa} ' * bool(isa)}python benchmarks/encoders.py {' '.join(sys.argv[1:])}".rstrip()
    )
    names = ", ".join(f"{name} {version(name)}" for name in ("segue", "torch", "transformers"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}, 1 thread")
    with torch.no_grad():
        sys.exit(any([told(name, settings.repeats) for name in settings.encoders.split(",")]))


if __name__ == "__main__":
    main()
