"""What do several phrases about one picture cost beside one? What is shown is read once for all of them.

    python benchmarks/many_phrases.py [--architecture Sa2VA-1B] [--phrases 1 4 16] [--repeats 2] [--dtype auto]

A model of that architecture's real size with random weights segments one picture by that many phrases; its replies are
as long as a trained one's ("Sure, [SEG]."). Processor seconds, minima of the repeats, which take turns.

The exit code is 1 if the most phrases cost over 2.5 times as much as one.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import segue
from segue.checkpoints.random_weights import random_checkpoint

ALLOWED = 2.5
SIZE = (448, 896)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="Sa2VA-1B")
    parser.add_argument("--phrases", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    settings = parser.parse_args()
    print(f"$ python benchmarks/many_phrases.py {' '.join(sys.argv[1:])}".rstrip())
    names = ", ".join(f"{name} {version(name)}" for name in ("segue", "torch", "transformers"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}")
    with TemporaryDirectory() as name:
        folder = random_checkpoint(Path(name) / "model", settings.architecture)
        model = segue.load(folder, device="cpu", dtype=settings.dtype)
    print(f"{settings.architecture} in {model.lineage['dtype']}, a picture of {SIZE[1]} x {SIZE[0]} pixels\n")
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    seconds: dict[int, list[float]] = {count: [] for count in settings.phrases}
    parts: dict[int, Mapping[str, float]] = {}
    for _ in range(settings.repeats):
        for count in settings.phrases:
            model.forget()
            started = time.process_time()
            answer = model.segment(picture, [f"the thing number {number}" for number in range(count)])
            seconds[count].append(time.process_time() - started)
            parts[count] = answer.usage.seconds
    one = min(seconds[settings.phrases[0]])
    for count in settings.phrases:
        spent = min(seconds[count])
        shares = ", ".join(f"{name} {value:.1f} s" for name, value in parts[count].items())
        print(f"{count:3} phrases {spent:7.1f} CPU s, {spent / one:5.2f}x of one ({shares})")
    sys.exit(0 if min(seconds[settings.phrases[-1]]) <= ALLOWED * one else 1)


if __name__ == "__main__":
    main()
