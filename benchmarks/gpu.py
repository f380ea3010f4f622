"""What a GPU makes of the architectures with 4 billion parameters, with random weights that are made on it.

    python benchmarks/gpu.py OUT [--architectures Sa2VA-4B Sa2VA-Qwen3-VL-4B] [--objects 1 4 16] [--frames 16]

For each architecture, in a process of its own: all that `segue bench` measures, as text and JSON, and which kernels the
decoding of a few tokens spends its time in. Files go to OUT. With two architectures it takes about three minutes on
an H100; nothing is read or downloaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from segue.bench.report import Plan
from segue.bench.stages import measure, question_of, random_engine
from segue.cli.bench import print_report
from segue.engine import Engine
from segue.models.base import Decoding

LIMIT = 240  # seconds for one architecture
PROFILED = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for what is found")
    parser.add_argument("--architectures", nargs="+", default=["Sa2VA-4B", "Sa2VA-Qwen3-VL-4B"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    if len(settings.architectures) == 1:
        one(settings.architectures[0], settings)
        return
    failed = []
    for name in settings.architectures:
        rest = [word for word in sys.argv[1:] if word not in settings.architectures and word != "--architectures"]
        command = [sys.executable, __file__, *rest, "--architectures", name]
        try:
            subprocess.run(command, check=True, timeout=LIMIT)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{name}: {error}", flush=True)
            failed.append(name)
    sys.exit(1 if failed else 0)


@torch.no_grad()
def one(name: str, settings: argparse.Namespace) -> None:
    """Measure one architecture and write what was found."""
    started = perf_counter()
    engine = random_engine(name, device=settings.device, dtype=settings.dtype)
    print(f"{name}: built in {perf_counter() - started:.0f} s", flush=True)
    plan = Plan(objects=tuple(settings.objects), frames=settings.frames, repeats=settings.repeats)
    report = measure(engine, plan, lambda line: print(line, flush=True))
    (settings.out / f"{name}.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    with (settings.out / f"{name}.txt").open("w") as file:
        for console in (Console(width=110, markup=False), Console(file=file, width=110, markup=False)):
            print_report(report, console)
    (settings.out / f"{name}_kernels.txt").write_text(kernels(engine))
    print(f"{name}: {perf_counter() - started:.0f} s in all\n", flush=True)


def kernels(engine: Engine) -> str:
    """A table of what decoding a few tokens spends its time in."""
    batch, features = question_of(engine)
    decoding = Decoding(is_over=lambda ids: False, seg_id=engine.processor.seg_id, max_new_tokens=4 * PROFILED)
    steps = engine.model.mllm.generate(batch, features, decoding)
    list(islice(steps, PROFILED))
    is_cuda = engine.model.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as found:
        list(islice(steps, PROFILED))
        if is_cuda:
            torch.cuda.synchronize()
    steps.close()
    order = "self_cuda_time_total" if is_cuda else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=90)


if __name__ == "__main__":
    main()
