"""What do two cores give a folder of small pictures, and a benchmark?

    python benchmarks/several_processes.py [--pictures 100] [--benchmark scenes_test] [--limit N] [--repeats 1]

`segue segment` over a folder of generated pictures and `segue evaluate` are run as a user runs them, in turns: one
process on one core, one process on two, and `--workers 2` on two; each time into a new folder, and once more for one
input a worker, which is the start: importing PyTorch takes a process seconds, however many cores there are. Told are
the time of the whole command by the clock, the same beyond the start, and what all its processes take of the processor.
The cores must be idle: where other work has them, the clock says nothing. `--pictures 0` leaves the folder out, and
`--whole` the start and the one process on two cores, which is slower than one on one.

The exit code is 1 if two workers are slower than one process.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from segue.synth import scene

ONE, MIDDLE, TWO = "one core", "two cores, one process", "two cores, two processes"
WAYS = {ONE: (1, 1), MIDDLE: (2, 1), TWO: (2, 2)}
"""Cores and workers."""
SEGUE = [sys.executable, "-m", "segue.cli.main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--benchmark", default="scenes_test")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--whole", action="store_true")
    settings = parser.parse_args()
    print(f"$ python benchmarks/several_processes.py {' '.join(sys.argv[1:])}".rstrip())
    names = ", ".join(f"{name} {version(name)}" for name in ("segue", "torch", "transformers"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}")
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    is_slower = False
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        folder.mkdir()
        for number in range(settings.pictures):
            Image.fromarray(scene(7, number).frames[0]).save(folder / f"picture{number}.png")
        works = {
            f"segue segment, {settings.pictures} pictures": [
                "segment",
                str(folder),
                "the star",
                "--formats",
                "png,coco",
            ],
            f"segue evaluate, {settings.benchmark}": ["evaluate", "demo", "--on", settings.benchmark],
        }
        limits = (settings.pictures, settings.limit or 1_000_000)
        for (name, command), limit in zip(works.items(), limits, strict=True):
            if limit:
                is_slower |= told(name, command, Path(scratch), limit, settings)
    print(f"load after: {os.getloadavg()[0]:.1f}")
    sys.exit(is_slower)


def told(name: str, command: Sequence[str], scratch: Path, limit: int, settings: argparse.Namespace) -> bool:
    """Runs a command each way in turns and prints what that takes; whether two workers are slower than one."""
    whole: dict[str, tuple[float, float]] = {}
    start: dict[str, tuple[float, float]] = {}
    ways = [ONE, TWO] if settings.whole else list(WAYS)
    for repeat in range(settings.repeats):
        for way in ways:
            cores, workers = WAYS[way]
            for kept, inputs in ((whole, limit),) if settings.whole else ((start, workers), (whole, limit)):
                out = scratch / f"{command[0]}-{cores}-{workers}-{inputs}-{repeat}"
                words = [*command, "-o", str(out), "--workers", str(workers), "--limit", str(inputs)]
                kept[way] = min(kept.get(way, (float("inf"),) * 2), run(words, cores))
    print(f"\n{name}; how many times one core: the whole command{'' if settings.whole else ', and beyond the start'}")
    for way, (clock, processor) in whole.items():
        ratio = f"{whole[ONE][0] / clock:.2f}x"
        if not settings.whole:
            ratio += f", {(whole[ONE][0] - start[ONE][0]) / (clock - start[way][0]):.2f}x"
        print(f"  {way:26} {clock:7.1f} s, {processor:7.1f} CPU s: {ratio}")
    return whole[TWO][0] > whole[ways[-2]][0]


def run(command: Sequence[str], cores: int) -> tuple[float, float]:
    """Seconds by the clock and of all its processes for a command on so many cores."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    own = sorted(os.sched_getaffinity(0))[:cores]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "passive"}
    subprocess.run(
        [*SEGUE, *command],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, own),
    )
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
