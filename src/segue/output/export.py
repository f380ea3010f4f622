"""Pixels and masks into files: PNG pictures, palette PNG masks and MP4 clips, whole or not at all."""

from __future__ import annotations

import math
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Bool, UInt8
from PIL import Image

from segue.errors import ConfigError, LimitError, MediaError
from segue.files import atomic_path
from segue.media.image import stored

MOST_OBJECTS = 255
_TICK = Fraction(1, 90_000)
"""The unit of time in a clip: fine enough for every usual rate."""
_SLOWEST, _FASTEST = 0.001, 1000.0


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write RGB pixels as PNG.

    Raises: MediaError, if the file cannot be written; then there is none.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def write_mask_png(path: Path, masks: Bool[np.ndarray, "n h w"]) -> None:
    """Write masks as one 8-bit palette PNG, as the DAVIS benchmark keeps them: 0 is background, i + 1 is object i.

    A pixel holds one number, so where objects overlap the **first** one keeps it. n = 0 gives background only.

    Raises: LimitError for more than 255 objects; MediaError, if the file cannot be written; then there is none.
    """
    if len(masks) > MOST_OBJECTS:
        raise LimitError(
            f"{len(masks)} objects do not fit a palette PNG of {MOST_OBJECTS}; write fewer, or write COCO RLE"
        )
    numbers = np.zeros(masks.shape[1:], dtype=np.uint8)
    for number in range(len(masks), 0, -1):
        numbers[masks[number - 1]] = number
    picture = Image.fromarray(numbers)
    picture.putpalette(davis_palette().tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def read_mask_png(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The numbers of objects in a picture that `write_mask_png` has written."""
    numbers: UInt8[np.ndarray, "h w"] = stored(path).values
    return numbers


def write_object_pngs(folder: Path, name: str, masks: Bool[np.ndarray, "n h w"]) -> None:
    """Write each mask whole, white on black, as `object_1/name`, `object_2/name` ... below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    for number, mask in enumerate(masks, start=1):
        path = folder / f"object_{number}" / name
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")


def davis_palette() -> UInt8[np.ndarray, "256 3"]:
    """The colour of every number in a mask PNG.

    Bits 0, 3, 6 of a number become the highest bits of its red, from the top down; bits 1, 4, 7 of its green and
    bits 2, 5 of its blue.
    Source: the colour map of the PASCAL VOC devkit, which DAVIS uses too.
    """
    numbers = np.arange(256, dtype=np.uint8)
    channels = [sum(((numbers >> (3 * k + channel)) & 1) << (7 - k) for k in range(3)) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


class OverlayWriter:
    """Writes frames of one size as an MP4 clip that browsers and common players show; use it in a `with` block.

    H.264 in yuv420p with the index in front (mpeg4 where PyAV comes without x264). That format needs even sides, so
    an odd one grows by one pixel, a copy of its neighbour. `size` is (height, width); `fps` may be a fraction such as
    29.97, and says when a frame is shown that is written without its time. The file appears when the block ends well
    and at no other time. Memory does not grow with the clip.

    Raises: ConfigError for an impossible frame rate; MediaError, if no frame was written or writing fails.
    """

    def __init__(self, path: Path, fps: int | float, size: tuple[int, int]):
        if not _SLOWEST <= fps <= _FASTEST:
            raise ConfigError(f"cannot write a video of {fps} frames per second; expected {_SLOWEST} to {_FASTEST}")
        self._path = path
        self._rate = Fraction(fps).limit_denominator(1001 if fps >= 1 else 10_000)
        self._size = size
        self._written = 0
        self._last = -1
        self._reformatter = VideoReformatter()
        self._stack = ExitStack()

    def __enter__(self) -> OverlayWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._container = stack.enter_context(
                av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
            )
            self._stream = self._new_stream()
            self._stack = stack.pop_all()
        return self

    def write(self, frame: UInt8[np.ndarray, "h w 3"], seconds: float = float("nan")) -> None:
        """Add one RGB frame, shown that many seconds after the first; without a time, one step after the frame before.

        Raises: MediaError, if it has another size than the clip, or the file cannot be written.
        """
        height, width = self._size
        if frame.shape[:2] != self._size:
            raise MediaError(f"a frame of {frame.shape[1]}x{frame.shape[0]} does not fit the clip of {width}x{height}")
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        picture.pts, picture.time_base = self._tick(seconds), _TICK
        self._container.mux(self._stream.encode(picture))
        self._written += 1

    def _tick(self, seconds: float) -> int:
        """When the frame is shown, after the one before it whatever a clock says."""
        step = 1 / self._rate / _TICK
        ticks = round(seconds / _TICK) if math.isfinite(seconds) else round(self._written * step)
        self._last = max(ticks, self._last + 1)
        return self._last

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self._written:
                raise MediaError(f"no frame was written to {self._path}; expected at least one")
            self._container.mux(self._stream.encode())

    def _new_stream(self) -> VideoStream:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        options = {"crf": "18", "preset": "veryfast"} if codec == "libx264" else {"qscale": "3"}
        stream = cast(VideoStream, self._container.add_stream(codec, rate=self._rate, options=options))
        stream.height, stream.width = (side + side % 2 for side in self._size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TICK
        # Said in the file, so that players need not guess the colours from the size.
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        return stream
