"""The process in which what clients send is decoded: it reads jobs as lines of JSON, and may be killed at any time.

What a decoder that has been taken over could reach is bounded: no key is in its environment, its memory and files have
a limit. Nothing but this file's own JSON and raw pixels leave it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import LimitError, MediaError, SegueError
from segue.media import Limits, iter_frames, open_media

_ROUNDING = 0.0011
"""Seconds by which even times may be off: the frame's own, and the last one's in the rate, to a millisecond."""


def decode(job: dict[str, Any]) -> dict[str, Any]:
    """Write all frames of the file `source` to the array file `target`; what they are, or an `error` for the client.

    As an "image", a moving picture is its first frame; as a "video", a still is refused; without a `kind` each is
    taken as it is.
    """
    limits = Limits(pixels=job["pixels"], frames=job["frames"], file_bytes=job["bytes"])
    try:
        media = open_media(Path(job["source"]).read_bytes(), limits, first=job["kind"] == "image")
        if job["kind"] not in (None, media.kind):
            raise MediaError(f"it is {'an image' if media.kind == 'image' else 'a video'}, which is not expected here")
        height, width = media.size
        size = media.count * height * width * 3
        if size > job["decoded_bytes"]:
            raise LimitError(
                f"its {media.count} frames of {width}x{height} have {size:,} bytes when decoded; at most "
                f"{job['decoded_bytes']:,} are allowed: cut it, or make it smaller"
            )
        pixels = np.lib.format.open_memmap(job["target"], "w+", np.uint8, (media.count, height, width, 3))
        seconds = []
        for frame in iter_frames(media):
            pixels[frame.number] = frame.image
            seconds.append(round(frame.seconds, 4))
        pixels.flush()
    except SegueError as error:
        text = str(error).replace("<bytes>", "it")
        return {"error": text, "is_limit": isinstance(error, LimitError)}
    return {"kind": media.kind, "fps": media.fps, "notes": media.notes, "seconds": uneven(seconds, media.fps)}


def uneven(seconds: list[float], fps: float | None) -> list[float] | None:
    """The times of frames; None where they are unknown, or even as far as clocks of milliseconds tell."""
    if not all(map(math.isfinite, seconds)):
        return None
    is_even = fps is not None and all(abs(time - place / fps) <= _ROUNDING for place, time in enumerate(seconds))
    return None if is_even else seconds


def main() -> None:
    """Decode one job after another until there are no more."""
    bound(int(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(decode(json.loads(line))) + "\n")
        sys.stdout.flush()


def bound(memory: int, file_bytes: int) -> None:
    """Have the system refuse more memory or larger files than that, where it can."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; there the time limit alone holds
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
