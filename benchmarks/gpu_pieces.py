"""Alternatives for the pieces of a decoding step, timed on a GPU: which way of each is quickest.

python benchmarks/gpu_pieces.py OUT [--architectures ...] [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from segue.bench.limits import measured, read_per_token
from segue.bench.stages import question_of, random_engine
from segue.models import fixed
from segue.models.base import Decoding

LINES: list[str] = []


def tell(line: str) -> None:
    LINES.append(line)
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--architectures", nargs="+", default=["Sa2VA-4B", "Sa2VA-Qwen3-VL-4B"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(settings.device)
    limits = measured(device, torch.bfloat16)
    tell(f"copy {limits.bandwidth / 1e9:.0f} GB/s, product {limits.products / 1e12:.0f} TFLOP/s")
    scale = 16 if settings.small else 1
    for job in (partial(linears, device, scale), partial(attends, device, scale), partial(smalls, device)):
        attempt(job)
    for name in settings.architectures:
        attempt(partial(decoding, name, settings.device, limits.bandwidth))
    (settings.out / "pieces.txt").write_text("\n".join(LINES) + "\n")


def attempt(job: Callable[[], object]) -> None:
    try:
        job()
    except (RuntimeError, TypeError, AttributeError, ValueError, ImportError, AssertionError):
        tell("FAILED " + traceback.format_exc()[-600:])


def timed(jobs: Sequence[Callable[[], object]], device: torch.device, rounds: int = 20) -> float:
    """Seconds per job; on CUDA by replay of a graph of all of them."""
    for job in jobs:
        job()
    if device.type != "cuda":
        started = perf_counter()
        for job in jobs:
            job()
        return (perf_counter() - started) / len(jobs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for job in jobs:
            job()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            for job in jobs:
                job()
    graph.replay()
    times = []
    for _ in range(rounds):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / 4 / len(jobs))
    return sorted(times)[len(times) // 2]


@torch.no_grad()
def linears(device: torch.device, scale: int) -> None:
    shapes = [(2048, 2048), (256, 2048), (2560, 2048), (11008, 2048), (22016, 2048), (2048, 11008)]
    shapes += [(4096, 2560), (1024, 2560), (6144, 2560), (2560, 4096), (9728, 2560), (2560, 9728), (151679, 2048)]
    for rows, width in shapes:
        rows, width = rows // scale, width // scale
        copies = max(3, min(32, int(3e8 // (rows * width * 2))))
        weights = [torch.randn(rows, width, device=device, dtype=torch.bfloat16) for _ in range(copies)]
        bias = torch.randn(rows, device=device, dtype=torch.bfloat16)
        x = torch.randn(1, width, device=device, dtype=torch.bfloat16)
        ways = {
            "linear": [partial(functional.linear, x, w) for w in weights],
            "linear+bias": [partial(functional.linear, x, w, bias) for w in weights],
            "mv": [partial(torch.mv, w, x[0]) for w in weights],
            "w@x": [partial(torch.mm, w, x.t()) for w in weights],
        }
        for name, jobs in ways.items():
            seconds = timed(jobs, device)
            tell(f"{rows}x{width} {name}: {seconds * 1e6:.1f} us, {rows * width * 2 / seconds / 1e9:.0f} GB/s")


@torch.no_grad()
def attends(device: torch.device, scale: int) -> None:
    for heads, groups, room in ((16, 2, 1536), (32, 8, 1024), (32, 8, 4096)):
        room //= scale
        make = partial(torch.randn, device=device, dtype=torch.bfloat16)
        query = make(heads, 128)
        caches = [(make(groups, room, 128), make(groups, room, 128)) for _ in range(8)]
        mask = torch.zeros(room, device=device, dtype=torch.bfloat16)
        mask[-100:] = float("-inf")
        width = heads // groups

        def grouped(k, v):
            return fixed.attend(query, k, v, mask, 0.09)

        def repeated(k, v):
            big = mask.expand(1, heads, 1, -1)
            k, v = k.repeat_interleave(width, 0), v.repeat_interleave(width, 0)
            return functional.scaled_dot_product_attention(query[None, :, None], k[None], v[None], big)

        def gqa(k, v):
            big = mask.expand(1, heads, 1, -1)
            return functional.scaled_dot_product_attention(query[None, :, None], k[None], v[None], big, enable_gqa=True)

        def unmasked(k, v):
            return functional.scaled_dot_product_attention(query[None, :, None], k[None], v[None], enable_gqa=True)

        def unmasked_grouped(k, v):
            return functional.scaled_dot_product_attention(query.view(1, groups, width, 128), k[None], v[None])

        def products(k, v):
            scores = torch.bmm(query.view(groups, width, 128), k.transpose(1, 2))
            weights = torch.softmax(torch.add(mask, scores, alpha=0.09), -1)
            return torch.bmm(weights, v)

        def exact(k, v):
            scores = torch.bmm(query.view(groups, width, 128), k.transpose(1, 2), out_dtype=torch.float32)
            weights = torch.softmax(torch.add(mask, scores, alpha=0.09), -1).to(v.dtype)
            return torch.bmm(weights, v)

        def split(k, v):
            parts = max(room // 128, 1)
            scores = torch.bmm(query.view(groups, width, 128), k.transpose(1, 2))
            weights = torch.softmax(torch.add(mask, scores, alpha=0.09), -1)
            cut = weights.view(groups, width, parts, -1).transpose(1, 2).reshape(groups * parts, width, -1)
            return torch.bmm(cut, v.view(groups * parts, -1, 128)).view(groups, parts, width, 128).sum(1)

        def cudnn(k, v):
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return grouped(k, v)

        def efficient(k, v):
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
                return grouped(k, v)

        ways = (grouped, repeated, gqa, unmasked, unmasked_grouped, products, exact, split, cudnn, efficient)
        for way in ways:
            attempt(partial(_attend, way, caches, device, (heads, groups, room)))


def _attend(way, caches, device, shape) -> None:
    tell(f"attend {shape} {way.__name__}: {timed([partial(way, *c) for c in caches], device) * 1e6:.1f} us")


@torch.no_grad()
def smalls(device: torch.device) -> None:
    make = partial(torch.randn, device=device, dtype=torch.bfloat16)
    x, w, heads, cosine = make(1, 2048), make(2048), make(18, 128), make(1, 128)
    gate, up = make(1, 11008), make(1, 11008)
    cache, place = make(2, 1536, 128), torch.tensor([700], device=device)
    norm = torch.nn.Module()
    ways = {
        "rms_norm": lambda: functional.rms_norm(x, (2048,), w, 1e-6),
        "rms_norm heads": lambda: functional.rms_norm(heads, (128,), cosine[0], 1e-6),
        "turned": lambda: fixed._turned(heads, cosine, cosine),
        "cat": lambda: torch.cat([heads, heads]),
        "silu*up": lambda: functional.silu(gate) * up,
        "add": lambda: x + x,
        "index_copy": lambda: cache.index_copy_(1, place, heads[:2, None]),
        "argmax": lambda: make(1, 2048).argmax(-1),
    }
    del norm, ways["argmax"]
    for name, job in ways.items():
        tell(f"{name}: {timed([job] * 10, device) * 1e6:.2f} us")


@torch.no_grad()
def decoding(name: str, device: str, bandwidth: float) -> None:
    engine = random_engine(name, device=device, dtype="bf16")
    batch, features = question_of(engine)
    weights = read_per_token(engine.model.mllm.language_model)
    plain, tokens = fixed.through, 100 if device == "cuda" else 8
    ways = {
        "growing": (plain, "growing"),
        "fixed, recorded": (plain, "fixed"),
        "compiled, recorded": (torch.compile(plain, fullgraph=True, dynamic=False), "fixed"),
        "tuned, recorded": (
            torch.compile(plain, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True}),
            "fixed",
        ),
    }
    torch._dynamo.config.recompile_limit = 64
    for way, (through, kind) in ways.items():
        torch._dynamo.reset()
        fixed.through = through
        attempt(partial(_decode, engine, batch, features, kind, tokens, f"{name} {way}", weights, bandwidth))
    fixed.through = plain


def _decode(engine, batch, features, kind, tokens, label, weights, bandwidth) -> None:
    decoding = Decoding(is_over=lambda ids: False, seg_id=-1, max_new_tokens=4 * tokens, cache=kind)
    started = perf_counter()
    steps = engine.model.mllm.generate(batch, features, decoding)
    next(steps)
    next(steps)
    first = perf_counter() - started
    list(islice(steps, 4))
    started = perf_counter()
    said = list(islice(steps, tokens))
    each = (perf_counter() - started) / tokens
    steps.close()
    share = weights / each / bandwidth
    tell(
        f"{label}: {1 / each:.1f} tokens/s, {each * 1e3:.3f} ms, {share:.1%} of {bandwidth / 1e9:.0f} GB/s; "
        f"start {first:.2f} s; said {said[0]}"
    )


if __name__ == "__main__":
    sys.exit(main())
