"""Does a long video need more memory than a short one? Peak memory of `segue segment` on clips of two lengths.

    python benchmarks/video_memory.py [--model FOLDER] [--frames 60 300] [--objects 1 5]

Each clip is followed by the command line itself in a process of its own, writing masks, COCO JSON and overlay; the
system then says what that process had in memory at most. Without a model, a tiny one with random weights is made.
What may grow with a clip is the answer itself, the run lengths of every mask: with random weights masks are noise,
and their run lengths ten times as long as those of things.

The exit code is 1 if the longest clip needs over 5 % more than the shortest.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

ALLOWED = 1.05
SIZE = (360, 640)
RATE = 25
MEGABYTE = 1e6
SEGUE = (sys.executable, "-c", "from segue.cli.main import main; main()")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder; without one, a tiny model with random weights")
    parser.add_argument("--frames", type=int, nargs="+", default=[60, 300], help="lengths of the clips")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 5], help="how many objects to follow")
    settings = parser.parse_args()
    names = ", ".join(f"{name} {version(name)}" for name in ("segue", "torch", "transformers", "av"))
    print(f"$ python benchmarks/video_memory.py {' '.join(sys.argv[1:])}".rstrip())
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}")
    print(f"clips of {SIZE[1]} x {SIZE[0]} pixels, H.264; segue segment --formats png,coco,overlay\n")
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = settings.model or random_checkpoint(folder)
        clips = {frames: make_clip(folder / f"{frames}.mp4", frames) for frames in sorted(settings.frames)}
        is_good = all([compare(clips, objects, model, folder) for objects in settings.objects])
    sys.exit(0 if is_good else 1)


def compare(clips: dict[int, Path], objects: int, model: Path, folder: Path) -> bool:
    """Print the peak of each clip and their ratio; whether the longest is within what is allowed."""
    peaks = {}
    for frames, clip in clips.items():
        out = folder / f"out-{objects}-{frames}"
        peaks[frames], seconds = follow(clip, objects, model, out)
        written = (out / clip.stem / "masks.json").stat().st_size / MEGABYTE
        work = f"{name_of(objects)}, {frames:4} frames: peak {peaks[frames] / MEGABYTE:6.1f} MB"
        print(f"{work}, masks.json {written:5.1f} MB, {seconds:5.1f} CPU s", flush=True)
    short, long = min(peaks), max(peaks)
    ratio = peaks[long] / peaks[short]
    verdict = "within" if ratio <= ALLOWED else "OVER"
    print(f"{name_of(objects)}: {long} frames / {short} frames = {ratio:.3f}x, {verdict} {ALLOWED:.2f}x\n", flush=True)
    return ratio <= ALLOWED


def name_of(objects: int) -> str:
    """How many objects, in words."""
    return f"{objects} object{'' if objects == 1 else 's'}"


def follow(clip: Path, objects: int, model: Path, out: Path) -> tuple[int, float]:
    """Bytes at the peak, and CPU seconds, of one run of the command line.

    Raises: RuntimeError, if it fails or does not write what it should.
    """
    phrases = [f"object {number}" for number in range(objects)]
    command = [*SEGUE, "segment", str(clip), *phrases, "--model", str(model), "-o", str(out)]
    command += ["--device", "cpu", "--dtype", "fp32", "--prefill", "It is [SEG]."]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not (out / clip.stem / "overlay.mp4").is_file():
        raise RuntimeError(f"segue segment failed with exit code {process.returncode}: {said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, usage.ru_utime + usage.ru_stime


def random_checkpoint(folder: Path) -> Path:
    """Write a tiny model with random weights, whose masks are noise: the worst case for run lengths.

    In a process of its own: one that is started here begins with the memory that there is here.
    """
    write = (
        "import sys, pathlib, segue.checkpoints.random_weights as it; it.random_checkpoint(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", write, folder / "model"], check=True)
    return folder / "model"


def make_clip(path: Path, frames: int) -> Path:
    """Write a clip of a bright disc that crosses a still scene."""
    height, width = SIZE
    scene = np.random.default_rng(0).integers(0, 200, (height // 40, width // 40, 3), dtype=np.uint8)
    scene = scene.repeat(40, axis=0).repeat(40, axis=1)
    rows, columns = np.ogrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = scene.copy()
            across = (7 * number) % width
            picture[(rows - height // 2) ** 2 + (columns - across) ** 2 < 60**2] = (255, 220, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
