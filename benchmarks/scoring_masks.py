"""How fast are masks scored? J and F of a thousand masks, beside a plain loop over masks with OpenCV.

    pip install opencv-python-headless
    python benchmarks/scoring_masks.py [--clips 50] [--frames 20] [--size 854x480] [--share 0.05]

Clips of drawn blobs that wander and change their form, and the same blobs as a model might find them: moved, swollen,
with holes, and missing in one frame of ten. The loop does what the official scorer does for each mask: logical
operations, outlines, and two dilations by a disk, `cv2.dilate` on bytes. Both are given the same arrays, use one thread
and are timed in turns, clip by clip, in seconds of processor time; their scores must agree to 1e-6.

The exit code is 1 if the loop is not at least 10 times as slow.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from importlib.metadata import version

import cv2
import numpy as np

from segue.evals.metrics.masks import TOLERANCE, agreement

WANTED = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--size", default="854x480", help="width and height in pixels")
    parser.add_argument("--share", type=float, default=0.05, help="of a frame that an object covers, on average")
    settings = parser.parse_args()
    width, height = map(int, settings.size.split("x"))
    cv2.setNumThreads(1)
    names = ", ".join(f"{name} {version(name)}" for name in ("segue", "numpy", "opencv-python-headless"))
    print(f"$ python benchmarks/scoring_masks.py {' '.join(sys.argv[1:])}".rstrip())
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}, 1 thread")
    ours, loops, apart, covered = [], [], 0.0, []
    for seed in range(settings.clips):
        truth, found = clip(np.random.default_rng(seed), settings.frames, (height, width), settings.share)
        covered.append(truth.mean())
        start = time.process_time()
        scores = np.stack(agreement(found, truth))
        middle = time.process_time()
        expected = np.transpose([plain(one, other) for one, other in zip(found, truth, strict=True)])
        loops.append(time.process_time() - middle)
        ours.append(middle - start)
        apart = max(apart, float(np.abs(scores - expected).max()))
    report(ours, loops, settings.frames, (width, height), float(np.mean(covered)))
    print(f"largest difference of a score: {apart:.1e}")
    sys.exit(0 if sum(loops) >= WANTED * sum(ours) and apart <= 1e-6 else 1)


def report(ours: list[float], loops: list[float], frames: int, size: tuple[int, int], share: float) -> None:
    """Print what both cost, and the ratio of all and of each clip."""
    count = len(ours) * frames
    print(
        f"{count} masks of {size[0]} x {size[1]}, {len(ours)} clips of {frames}; objects cover {share:.1%} of a frame\n"
    )
    for name, seconds in (("segue", ours), ("OpenCV loop", loops)):
        print(f"{name:12} {sum(seconds):6.2f} CPU s, {1e3 * sum(seconds) / count:6.3f} ms per mask")
    ratios = np.divide(loops, ours)
    print(f"OpenCV loop / segue = {sum(loops) / sum(ours):.1f}x (clips: {ratios.min():.1f} to {ratios.max():.1f})")


def clip(rng: np.random.Generator, frames: int, size: tuple[int, int], share: float) -> tuple[np.ndarray, np.ndarray]:
    """The true masks of a blob that wanders through a clip, and found ones: Bool[t h w] each."""
    area = share * size[0] * size[1] * rng.uniform(0.25, 1.75)
    radius = math.sqrt(area / math.pi)
    stretch, phase, lobes = rng.uniform(0.6, 1.6), rng.uniform(0, 6.28), int(rng.integers(3, 8))
    place, speed = rng.uniform(0.25, 0.75, 2) * size, rng.uniform(-4, 4, 2)
    rows, columns = np.ogrid[: size[0], : size[1]]
    pair = np.zeros((2, frames, *size), bool)
    for number in range(frames):
        for masks, shift, swell in zip(pair, (0.0, rng.uniform(-4, 4)), (1.0, rng.uniform(0.95, 1.05)), strict=True):
            down = (rows - place[0] - number * speed[0] - shift) * stretch
            across = (columns - place[1] - number * speed[1] - shift) / stretch
            angle = lobes * np.arctan2(down, across) + phase + 0.1 * number
            masks[number] = np.hypot(down, across) < swell * radius * (1 + 0.2 * np.sin(angle))
    truth, found = pair
    holes = rng.random((frames, -(-size[0] // 8), -(-size[1] // 8))) < 0.02
    found &= ~holes.repeat(8, axis=1).repeat(8, axis=2)[:, : size[0], : size[1]]
    found[rng.random(frames) < 0.1] = False
    return truth, found


def plain(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F of one mask."""
    union = np.sum(found | truth)
    similarity = np.sum(found & truth) / union if union else 1.0
    reach = math.ceil(TOLERANCE * math.hypot(*found.shape))
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (down**2 + across**2 <= reach**2).astype(np.uint8)
    mine, other = edges(found), edges(truth)
    near_other, near_mine = cv2.dilate(other, disk), cv2.dilate(mine, disk)
    length, other_length = np.sum(mine), np.sum(other)
    precision = np.sum(mine & near_other) / length if length else 1.0
    recall = np.sum(other & near_mine) / other_length if other_length else 1.0
    total = precision + recall
    return float(similarity), float(2 * precision * recall / total) if total else 0.0


def edges(mask: np.ndarray) -> np.ndarray:
    """The outline of a mask, as bytes of 0 and 1."""
    east, south, corner = mask.copy(), mask.copy(), mask.copy()
    east[:, :-1], south[:-1] = mask[:, 1:], mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    corner[-1, :-1], corner[:-1, -1] = mask[-1, 1:], mask[1:, -1]
    return ((mask ^ east) | (mask ^ south) | (mask ^ corner)).astype(np.uint8)


if __name__ == "__main__":
    main()
