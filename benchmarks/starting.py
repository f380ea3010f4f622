"""What does a user wait for before the first answer: imports, and loading?

    python benchmarks/starting.py [--architecture Sa2VA-1B] [--repeats 3]

Imports: a new process for each step, everything before it included: Python with PyTorch, transformers' base class of
models, Segue, the demo model in memory, its first mask. Loading: a model folder of that architecture's real size with
random float32 weights, read in a new process by the safetensors library alone (every tensor mapped and its bytes
touched once) and by `segue.load` in float32 and bfloat16; the first time, when hashes of the files are not remembered,
and again. Processor seconds and peak memory, minima of the repeats, imports left out of loading.

The exit code is 1 if loading needs over a tenth more memory than the library's, or costs no less again than first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

LARGER = 1.1
STEPS = {
    "Python and PyTorch": "import torch",
    "transformers' PreTrainedModel": "import transformers.modeling_utils",
    "Segue": "import segue.loading",
    "the demo model": "import segue; segue.load('demo', device='cpu')",
    "a first mask": (
        "import segue; from segue.synth import scene; "
        "segue.load('demo', device='cpu').ask(scene(0, 0).frames[0], 'Please segment the thing on the left.')"
    ),
}
PLAIN = """
from safetensors import safe_open
held = []
for file in sorted(folder.glob("*.safetensors")):
    with safe_open(file, "pt") as reader:
        held += [reader.get_tensor(name) for name in reader.keys()]
touched = sum(float(tensor.sum()) for tensor in held)
"""
OURS = "model = segue.load(folder, device='cpu', dtype={dtype!r}, check_memory=False)"
MEASURED = """
import json, resource, sys, time
from pathlib import Path
import segue, segue.loading, torch
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, clock = time.process_time(), time.perf_counter()
{work}
print(json.dumps({{"cpu": time.process_time() - start, "clock": time.perf_counter() - clock,
    "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}}))
"""
TIMED = "import time\n{work}\nprint(time.process_time())"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="Sa2VA-1B")
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    print(f"$ python benchmarks/starting.py {' '.join(sys.argv[1:])}".rstrip())
    names = ", ".join(f"{name} {version(name)}" for name in ("segue", "torch", "transformers", "safetensors"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}\n")
    starting(settings.repeats)
    with TemporaryDirectory() as name:
        sys.exit(0 if loading(Path(name), settings.architecture, settings.repeats) else 1)


def starting(repeats: int) -> None:
    """Print what each step adds, and its share of all."""
    seconds = {
        step: min(float(child(TIMED.format(work=work)).splitlines()[-1]) for _ in range(repeats))
        for step, work in STEPS.items()
    }
    whole, before = seconds["a first mask"], 0.0
    for step, spent in seconds.items():
        print(f"{step:30} {spent - before:5.2f} CPU s more, {spent:5.2f} in all, {(spent - before) / whole:4.0%}")
        before = spent


def loading(folder: Path, architecture: str, repeats: int) -> bool:
    """Print what loading costs beside the library; whether it is within the bounds."""
    model = folder / "model"
    child(
        "import sys, pathlib, segue.checkpoints.random_weights as it; "
        "it.random_checkpoint(pathlib.Path(sys.argv[1]), sys.argv[2])",
        str(model),
        architecture,
    )
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"\n{architecture}, random float32 weights, {size / 1e9:.1f} GB of files")
    works = {
        "safetensors, mapped and touched": (PLAIN, False),
        "segue.load fp32, first time": (OURS.format(dtype="fp32"), True),
        "segue.load fp32, again": (OURS.format(dtype="fp32"), False),
        "segue.load bf16, again": (OURS.format(dtype="bf16"), False),
    }
    found = {}
    for name, (work, is_first) in works.items():
        runs = []
        for _ in range(repeats):
            cache = folder / f"cache{len(runs)}" if is_first else folder / "cache0"
            runs.append(json.loads(child(MEASURED.format(work=work), str(model), cache=cache)))
        found[name] = {key: min(run[key] for run in runs) for key in runs[0]}
        plain = found["safetensors, mapped and touched"]
        ratios = [found[name][key] / plain[key] for key in ("cpu", "memory")]
        print(
            f"{name:32} {found[name]['cpu']:5.1f} CPU s ({found[name]['clock']:5.1f} s), {ratios[0]:4.2f}x; "
            f"peak {found[name]['memory'] / 1e9:4.1f} GB, {ratios[1]:4.2f}x",
            flush=True,
        )
    first, again = found["segue.load fp32, first time"], found["segue.load fp32, again"]
    return again["memory"] <= LARGER * plain["memory"] and again["cpu"] < first["cpu"]


def child(code: str, *arguments: str, cache: str | Path = "") -> str:
    """What a new process prints; `cache` is where it remembers hashes."""
    environment = {**os.environ, **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


if __name__ == "__main__":
    main()
