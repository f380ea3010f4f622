"""Images and videos: what they are, and their pixels.

`open_media` probes and decodes nothing it need not; `read_image`, `read_frames` and `iter_frames` decode. Pixels are
RGB, 8 bits, as a viewer shows them: EXIF orientation and rotation metadata are applied.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segue.errors import ConfigError, MediaError
from segue.facts import FileFacts
from segue.media import arrays, deep, folder, formats, image
from segue.media.ahead import read_ahead
from segue.media.arrays import Source
from segue.media.deep import Window
from segue.media.limits import DEFAULT_LIMITS, Limits
from segue.reading import refuse_url
from segue.types import Frames, Media, MediaKind

__all__ = [
    "DEFAULT_LIMITS",
    "Limits",
    "Source",
    "VideoFrame",
    "iter_frames",
    "open_media",
    "read_ahead",
    "read_frames",
    "read_image",
    "remembering",
]

_FACTS: ContextVar[FileFacts | None] = ContextVar("facts", default=None)


class VideoFrame(NamedTuple):
    """One decoded frame: its number, its time in seconds, its RGB pixels."""

    number: int
    seconds: float
    image: UInt8[np.ndarray, "h w 3"]


def open_media(
    source: Source, limits: Limits = DEFAULT_LIMITS, *, first: bool = False, window: Window | None = None
) -> Media:
    """Find out what an image or video is, without decoding it.

    Takes the path of an image, of a video or of a folder of numbered pictures (a video); the encoded bytes of an
    image or video, or a file open for reading them; a Pillow image; an array or tensor, (h, w, 3) or (3, h, w) for an
    image, (t, h, w, 3) or (t, 3, h, w) for a video, uint8 or floating point from 0 to 1; a list of such images of one
    size, which are the frames of a video; or a `Media`, which is given back. What a file is decides its content, not
    its name. Pillow images and lists are decoded here; arrays of uint8 with colours last are kept, not copied.

    An animated GIF, WebP, PNG or AVIF, and a TIFF with pages of one size, is a video; with `first` it is an image of
    its first picture, which the medium's `notes` say. Pictures of more than 8 bits are brought to 8 by a `window`,
    which becomes black and white: the one given, or the range of values that is used, for which they are decoded here.
    One that uses half of its 16 bits or more is shown as it is.

    Raises: MediaError, if there is nothing there, or nothing that can be read, and for a URL; LimitError, if it is too
    large.
    """
    if isinstance(source, Media):
        return source
    if isinstance(source, str | Path):
        return _open_path(source, limits, first=first, window=window)
    if isinstance(source, Image.Image):
        return _open_pillow(source, limits, window)
    if isinstance(source, bytes | bytearray):
        return _open_encoded(bytes(source), "<bytes>", limits, first=first, window=window)
    if isinstance(source, arrays.Array):
        return _open_array(arrays.rgb(source), limits)
    if isinstance(source, arrays.OpenFile):
        data = arrays.read_open(source, limits.file_bytes)
        return _open_encoded(data, "<file>", limits, first=first, window=window)
    if isinstance(source, list | tuple):
        return _open_frames(source, limits, window)
    raise MediaError(
        f"cannot take a {type(source).__name__} as an image or video; expected a path, encoded bytes, an open file, a "
        "Pillow image, an array or tensor of pixels, or a list of frames"
    )


@contextmanager
def remembering(facts: FileFacts) -> Iterator[None]:
    """While it lasts, `open_media` takes a video file's size, length and rate from these facts if they know it, so that
    it is not opened; to find them out all packets of it are read.
    """
    token = _FACTS.set(facts)
    try:
        yield
    finally:
        _FACTS.reset(token)


def read_image(media: Media) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of an image.

    Transparency is dropped, more than 8 bits are windowed, ICC profiles are not applied.

    Raises: MediaError, if it cannot be decoded or is a video.
    """
    if media.kind != "image":
        raise MediaError(f"{media.name} is a video of {media.count} frames where an image was expected")
    return next(_checked(media, (0,)))[2]


def read_frames(media: Media, indices: Sequence[int]) -> Frames:
    """The frames of these numbers, from 0, in the order asked for; numbers may repeat. An image has frame 0 only.

    Frames are exact (the n-th picture shown, also at a variable rate), and only what they need is decoded. Seconds
    count from frame 0; they are NaN where the source has no clock, as a folder or an array.

    Raises: MediaError, if a number is out of range, or the source breaks or changes on the way.
    """
    for index in indices:
        if not 0 <= index < media.count:
            raise MediaError(f"{media.name} has no frame {index}; it has frames 0 to {media.count - 1}")
    wanted, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    pixels = np.empty((len(indices), *media.size, 3), dtype=np.uint8)
    seconds = np.empty(len(indices))
    for position, (_, second, frame) in enumerate(_checked(media, wanted.tolist())):
        pixels[places == position] = frame
        seconds[places == position] = second
    return Frames(pixels, wanted[places], seconds)


def iter_frames(media: Media, start: int = 0, *, stop: int | None = None, step: int = 1) -> Iterator[VideoFrame]:
    """Stream the frames of `range(start, stop, step)`, cut to what there is, each as number, seconds and RGB pixels.

    One frame is held at a time. An image is a video of one frame. Seconds as in `read_frames`.

    Raises: ConfigError, if start is negative or step is not positive; MediaError while iterating, if the source
        breaks or changes, saying at which frame.
    """
    if start < 0 or step < 1:
        raise ConfigError(f"cannot read frames from {start} in steps of {step}; expected start >= 0 and step >= 1")
    return _checked(media, range(start, media.count if stop is None else min(stop, media.count), step))


def _open_path(source: str | Path, limits: Limits, *, first: bool, window: Window | None) -> Media:
    refuse_url(source)
    path = Path(source)
    try:
        if path.is_dir():
            return _open_folder(path, limits, window)
        return _open_encoded(path, str(path), limits, first=first, window=window)
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file or folder") from error
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}") from error


def _open_pillow(picture: Image.Image, limits: Limits, window: Window | None) -> Media:
    name = "the Pillow image"
    if not picture.width or not picture.height:
        raise MediaError(f"{name} is {picture.width}x{picture.height}; expected one pixel or more")
    limits.check_size(name, (picture.height, picture.width))
    notes = image.told_of_several(picture)
    if window is None and deep.is_grey(picture):
        window = deep.window(deep.values(picture, name))
        notes += () if window is None else (deep.told(window),)
    return replace(_open_array(image.rgb(picture, name, window=window), limits), window=window, notes=notes)


def _open_array(pixels: UInt8[np.ndarray, "*t h w 3"], limits: Limits) -> Media:
    *times, height, width, _ = pixels.shape
    limits.check_size("the array", (height, width))
    if not times:
        return Media(pixels, "image", (height, width))
    limits.check_frames("the array", times[0])
    return Media(pixels, "video", (height, width), times[0])


def _open_frames(frames: Sequence[arrays.Frame], limits: Limits, window: Window | None) -> Media:
    """A video of images, decoded. Deep ones share the window that takes in all of theirs."""
    name = "the list of frames"
    if not frames:
        raise MediaError(f"{name} is empty; give at least one image")
    limits.check_frames(name, len(frames))
    opened = [open_media(frame, limits, first=True, window=window) for frame in frames]
    if window is None and (window := deep.joined(frame.window for frame in opened)) is not None:
        sources = [
            given if isinstance(given, Image.Image) else frame.source
            for given, frame in zip(frames, opened, strict=True)
        ]
        opened = [open_media(one, limits, first=True, window=window) for one in sources]
    for number, frame in enumerate(opened):
        if frame.kind != "image" or frame.size != opened[0].size:
            raise MediaError(
                f"frame {number} of the list is {frame!r} where an image of the size of the first, {opened[0]!r}, was "
                "expected; give a video by its own path"
            )
    limits.check_bytes(name, 3 * len(frames) * opened[0].size[0] * opened[0].size[1])
    notes = (deep.told(window),) if window else tuple(dict.fromkeys(note for frame in opened for note in frame.notes))
    pixels = np.stack([read_image(frame) for frame in opened])
    return replace(_open_array(pixels, limits), window=window, notes=notes)


def _open_folder(path: Path, limits: Limits, window: Window | None) -> Media:
    files = folder.frame_files(path)
    limits.check_frames(str(path), len(files))
    limits.check_bytes(str(path), sum(file.stat().st_size for file in files))
    probed = image.probe(files[0], str(files[0]), limits, first=True, window=window)
    if window is None and probed.window is not None:
        several = (image.probe(file, str(file), limits, first=True).window for file in files)
        if (window := deep.joined(several)) is not None:
            return Media(path, "video", probed.size, len(files), None, window, (deep.told(window),))
    return Media(path, "video", probed.size, len(files), None, window, probed.notes)


def _open_encoded(source: Path | bytes, name: str, limits: Limits, *, first: bool, window: Window | None) -> Media:
    facts = _FACTS.get()
    if facts is None or isinstance(source, bytes):
        found = _probe_video(source, name, limits)
    else:
        found = facts.of(source, "video", lambda: _probe_video(source, name, limits))
    if found:
        (height, width), count, rate, notes = found
        limits.check_size(name, (height, width))
        limits.check_frames(name, count)
        unused = ("the window is not used, for it is a video",) if window else ()
        return Media(source, "video", (height, width), count, rate, None, (*notes, *unused))
    probed = image.probe(source, name, limits, first=first, window=window)
    what: MediaKind = "image" if probed.count == 1 else "video"
    return Media(source, what, probed.size, probed.count, probed.fps, probed.window, probed.notes)


def _probe_video(source: Path | bytes, name: str, limits: Limits) -> Sequence[Any]:
    """What `video.probe` finds out; nothing of pictures."""
    with formats.reader(source) as file:
        kind = formats.identify(file.read(formats.HEAD), name)
        limits.check_bytes(name, file.seek(0, io.SEEK_END))
    if kind in formats.IMAGE_FORMATS:
        return ()
    from segue.media import video

    return video.probe(source, name, limits)


def _checked(media: Media, indices: Sequence[int]) -> Iterator[VideoFrame]:
    """The frames of these ascending numbers, checked against what the medium was when it was opened."""
    try:
        for index, seconds, pixels in _decoded(media, indices):
            if pixels.shape[:2] != media.size:
                height, width = media.size
                raise MediaError(
                    f"frame {index} of {media.name} is {pixels.shape[1]}x{pixels.shape[0]} where {width}x{height} was "
                    "expected; all frames must have one size, and the file must not change while it is read"
                )
            yield VideoFrame(index, seconds, pixels)
    except OSError as error:
        raise MediaError(f"{media.name} cannot be read any more: {error.strerror}") from error


def _decoded(media: Media, indices: Sequence[int]) -> Iterator[tuple[int, float, np.ndarray]]:
    source, name = media.source, str(media.source) if isinstance(media.source, Path) else media.name
    if isinstance(source, np.ndarray):
        if media.kind == "image":
            return ((index, 0.0, source.copy()) for index in indices)
        clock = np.full(media.count, np.nan) if media.seconds is None else media.seconds
        return ((index, float(clock[index]), source[index].copy()) for index in indices)
    if isinstance(source, Path) and source.is_dir():
        files = folder.frame_files(source)
        if len(files) != media.count:
            raise MediaError(f"{name} had {media.count} frames when it was opened and has {len(files)} now")
        return (_frame_of(files[index], index, media) for index in indices)
    if media.kind == "image" or _is_pictures(source, name):
        return image.decode(source, name, media.size, indices=indices, window=media.window)
    from segue.media import video

    return video.decode(source, name, indices=indices, count=media.count)


def _frame_of(file: Path, index: int, media: Media) -> tuple[int, float, np.ndarray]:
    """A frame of a folder, which has no clock."""
    _, _, pixels = next(image.decode(file, str(file), media.size, window=media.window))
    return index, float("nan"), pixels


def _is_pictures(source: Path | bytes, name: str) -> bool:
    with formats.reader(source) as file:
        return formats.identify(file.read(formats.HEAD), name) in formats.IMAGE_FORMATS
