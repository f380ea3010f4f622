"""Video files through PyAV: what they are, and their frames by number.

Frame i is the i-th picture in the order of presentation, whatever order the file keeps them in. Pictures that a
decoder cannot show because the file starts in the middle of a group (they come before the first key frame) do not
count, and neither do those that an edit list hides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import Container, InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Int, UInt8

from segue.errors import MediaError
from segue.media import formats
from segue.media.limits import Limits

NEAR = 16
"""Frames that are rather decoded than jumped over: a jump costs about as much."""
_ENOUGH = 4
"""Frames from which on a rate can be told."""
_UNEVEN = 0.3
"""Share of the usual step by which steps of a clip of even rate differ; clocks of milliseconds round."""
_FEW_GAPS = 0.1
"""Largest share of steps that are gaps; with more, the rate varies."""
_SLACK = 2
"""Frames by which a stated length may exceed what is there: the last one lasts, and lengths are rounded."""
_THREADS = 4
_SCREEN_BITS = 10  # of a value, the most that videos made to be looked at have
"""More bring little, and each holds a frame or two."""


@dataclass(frozen=True, slots=True)
class _Timetable:
    """When each frame is shown, in the stream's ticks and in order; `keys` are the ticks of the key frames.

    Where `is_reliable` is false, ticks cannot tell frames apart and only their number means something.
    """

    ticks: Int[np.ndarray, " t"]
    keys: Int[np.ndarray, " k"]
    is_reliable: bool


def probe(
    source: Path | bytes, name: str, limits: Limits
) -> tuple[tuple[int, int], int, float | None, tuple[str, ...]]:
    """(height, width) after rotation, the exact number of frames, the mean frames per second or None, and notes for
    people: that it is one of several, that frames seem lost, or have more bits than a screen shows.

    All packets are read, because containers lie about their number or do not know it. One frame is decoded, because
    only a decoded frame tells how it is rotated.

    Raises: MediaError, LimitError.
    """
    with _opened(source, name) as (container, stream):
        limits.check_size(name, (stream.codec_context.height, stream.codec_context.width))
        limits.check_frames(name, stream.frames)
        first: list[VideoFrame] = []
        timetable = _read_timetable(_decoding_one(container.demux(stream), first), stream, name, limits=limits)
        if not first or not len(timetable.ticks):
            raise MediaError(f"{name} has no frame that can be decoded; copy or encode it again")
        height, width = _upright(np.empty((first[0].height, first[0].width, 0)), first[0]).shape[:2]
        limits.check_size(name, (height, width))
        notes = (*_others(container), *_losses(stream, timetable), *_depth(first[0]))
        return (height, width), len(timetable.ticks), _mean_rate(stream, timetable), notes


def decode(
    source: Path | bytes, name: str, *, indices: Sequence[int], count: int
) -> Iterator[tuple[int, float, UInt8[np.ndarray, "h w 3"]]]:
    """The frames of these numbers, which must ascend: number, seconds since frame 0, RGB pixels as a player shows them.

    `count` is how many frames the video should have; errors name it.

    Holds one frame at a time. Near frames are reached by decoding, far ones by jumping to the key frame before them.
    Seconds are NaN where the file does not tell them. Non-square pixels stay as stored.

    Raises: MediaError, if the file breaks before the last of them, saying at which frame.
    """
    with _opened(source, name) as (container, stream):
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = _THREADS
        reader = _FrameReader(source, name, count=count, container=container, stream=stream)
        reformatter = VideoReformatter()
        for index in indices:
            frame = reader.read(index)
            pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            yield index, reader.seconds(frame), _upright(pixels, frame)


class _FrameReader:
    """Reads frames by ascending number from a container just opened, jumping where that saves work."""

    def __init__(self, source: Path | bytes, name: str, *, count: int, container: InputContainer, stream: VideoStream):
        self._source = source
        self._name = name
        self._count = count
        self._container = container
        self._stream = stream
        self._timetable: _Timetable | None = None
        self._start: int | None = None
        self._next = 0
        self._frames = _decoded(container, stream)

    def read(self, index: int) -> VideoFrame:
        """Frame `index`, which must lie behind the one read last."""
        if index - self._next > NEAR and _has_clock(self._container):
            self._jump_towards(index)
        while True:
            with _reporting(f"{self._name} is damaged near frame {self._next} of {self._count}"):
                frame = next(self._frames, None)
            if frame is None:
                raise MediaError(f"{self._name} breaks off after {self._next} of {self._count} frames; copy it again")
            if frame.is_corrupt:
                raise MediaError(f"{self._name} is damaged at frame {self._next} of {self._count}; copy it again")
            if self._start is None:
                self._start = frame.pts
            self._next += 1
            if self._next > index:
                return frame

    def seconds(self, frame: VideoFrame) -> float:
        """Seconds from frame 0 to the frame read last."""
        unit = self._stream.time_base
        if _has_clock(self._container) and frame.pts is not None and self._start is not None and unit is not None:
            return float((frame.pts - self._start) * unit)
        rate = self._stream.average_rate
        return float((self._next - 1) / rate) if rate else float("nan")

    def _jump_towards(self, index: int) -> None:
        """Go to the last key frame that is shown no later than frame `index`, unless decoding on is as near."""
        if self._timetable is None:
            with _opened(self._source, self._name) as (container, stream):
                self._timetable = _read_timetable(container.demux(stream), stream, self._name)
        ticks, keys = self._timetable.ticks, self._timetable.keys
        if not self._timetable.is_reliable or index >= len(ticks):
            return
        key = int(keys[np.searchsorted(keys, ticks[index], side="right") - 1])
        if np.searchsorted(ticks, key) - self._next <= NEAR:
            return
        self._start = int(ticks[0])
        # Some demuxers land behind the key frame they were sent to; the first one can always be reached.
        if not (self._landed(ticks, key) and self._next <= index):
            self._landed(ticks, int(keys[0]))

    def _landed(self, ticks: Int[np.ndarray, " t"], key: int) -> bool:
        """Go to a key frame; whether the frame that follows there is one of the timetable."""
        with _reporting(f"{self._name} cannot be searched, or is damaged between frame {self._next} and {self._count}"):
            self._container.seek(key, stream=self._stream)
            frames = _decoded(self._container, self._stream)
            first = next(frames, None)
        self._frames = frames if first is None else chain([first], frames)
        if first is None or first.pts is None:
            return False
        self._next = int(np.searchsorted(ticks, first.pts))
        return bool(np.isin(first.pts, ticks))


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames from where the demuxer stands, in order; those that need pictures from before are left out."""
    first_key = None
    for packet in container.demux(stream):
        if first_key is None and packet.is_keyframe:
            first_key = packet.pts if _has_clock(container) else None
        for frame in [] if _is_left_out(packet) else packet.decode():
            if first_key is None or frame.pts is None or frame.pts >= first_key:
                yield frame


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container known to be complete, and its first stream of moving pictures."""
    with formats.reader(source) as file:
        kind = formats.identify(file.read(formats.HEAD), name)
        if kind not in formats.CONTAINER_FORMATS:
            raise MediaError(f"{name} is an image ({kind}) where a video was expected")
        formats.check_complete(file, kind, name)
        file.seek(0)
        # A name could be read as a protocol ("concat:..."), an open file cannot.
        with _reporting(f"{name} is damaged or incomplete"):
            container = av.open(file, "r", format=kind, metadata_errors="replace")
        with container:
            yield container, _moving_pictures(container, name)


def _moving_pictures(container: InputContainer, name: str) -> VideoStream:
    """The first video stream that is no cover picture."""
    streams = _moving_streams(container)
    if not streams:
        raise MediaError(f"{name} has no video in it; expected at least one video stream")
    if streams[0].codec_context is None:
        raise MediaError(f"{name} is encoded in a way that the FFmpeg of PyAV cannot decode; convert it to H.264")
    return streams[0]


def _moving_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams that are no cover pictures."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _others(container: InputContainer) -> tuple[str, ...]:
    """That there are more videos in the file than the one that is taken."""
    count = len(_moving_streams(container))
    return (f"the first of {count} video streams",) if count > 1 else ()


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Turn FFmpeg's errors into ours."""
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError(f"{what}: {error.strerror}; copy or encode it again") from error


def _decoding_one(packets: Iterator[Packet[VideoStream]], frames: list[VideoFrame]) -> Iterator[Packet[VideoStream]]:
    """Hand packets on, decoding them into `frames` until the first frame is out."""
    for packet in packets:
        if not frames and not _is_left_out(packet):
            frames += packet.decode()
        yield packet


def _read_timetable(
    packets: Iterator[Packet[VideoStream]], stream: VideoStream, name: str, *, limits: Limits | None = None
) -> _Timetable:
    """The timetable of a stream from all its packets, without decoding them."""
    ticks: list[int | None] = []
    keys: list[int] = []
    has_started = False
    with _reporting(f"{name} is damaged"):
        for packet in packets:
            if packet.is_corrupt:
                raise MediaError(f"{name} is damaged or cut off at frame {len(ticks)}; copy it again")
            has_started = has_started or packet.is_keyframe
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            if has_started and _is_shown(packet, stream):
                ticks.append(packet.pts)
            if limits is not None:
                limits.check_frames(name, len(ticks))
    if keys and None not in ticks and _has_clock(stream.container):
        start = min(keys)
        known = np.array(sorted(tick for tick in ticks if tick is not None and tick >= start), dtype=np.int64)
        if (np.diff(known) > 0).all():
            return _Timetable(known, np.array(sorted(keys)), is_reliable=True)
    return _Timetable(np.arange(len(ticks)), np.array(keys, dtype=np.int64), is_reliable=False)


def _is_shown(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    """Whether a packet becomes a frame that is shown."""
    if packet.size == 0 or packet.is_discard:
        return False
    # VP8 keeps pictures that only others refer to in packets of their own, marked in the frame tag (RFC 6386, 9.1).
    return stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def _is_left_out(packet: Packet[VideoStream]) -> bool:
    """Whether a recorder dropped a frame here; the decoder would take the empty packet for the end of the video."""
    return packet.size == 0 and packet.dts is not None


def _has_clock(container: Container) -> bool:
    """Whether the container knows when each frame is shown; AVI knows only the order of decoding."""
    return container.format.name != "avi"


def _mean_rate(stream: VideoStream, timetable: _Timetable) -> float | None:
    ticks = timetable.ticks
    if timetable.is_reliable and len(ticks) > 1 and stream.time_base:
        return float((len(ticks) - 1) / (int(ticks[-1] - ticks[0]) * stream.time_base))
    return float(stream.average_rate) if stream.average_rate else None


def _losses(stream: VideoStream, timetable: _Timetable) -> tuple[str, ...]:
    """That frames seem lost, where a clip of even rate has gaps, or ends long before the length that it states."""
    ticks, unit = timetable.ticks, stream.time_base
    if not timetable.is_reliable or len(ticks) < _ENOUGH or not unit:
        return ()
    steps = np.diff(ticks)
    usual = float(np.median(steps))
    is_even = np.abs(steps - usual) <= max(_UNEVEN * usual, 1)
    if np.count_nonzero(~is_even) > _FEW_GAPS * len(steps):
        return ()  # its rate varies, so gaps are how it was made
    missing = int((np.rint(steps[~is_even] / usual) - 1).clip(min=0).sum())
    stated = _stated_ticks(stream, int(ticks[0]))
    if stated is not None:
        missing += max(0, round((stated - (ticks[-1] - ticks[0])) / usual) - _SLACK)
    if not missing:
        return ()
    return (f"about {missing} frames seem lost: it has {len(ticks)}, and its clock has gaps; it may be damaged",)


def _depth(frame: VideoFrame) -> tuple[str, ...]:
    """That values of many bits, of which measurements often use the low ones alone, are taken over their range."""
    bits = max(component.bits for component in frame.format.components)
    if bits <= _SCREEN_BITS:
        return ()
    return (f"its {bits} bits are brought to 8 over their whole range; as images, they are windowed to what is used",)


def _stated_ticks(stream: VideoStream, start: int) -> float | None:
    """How long the stream says it is, in its ticks; the first frame's is `start`."""
    if stream.duration:
        return float(stream.duration)
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if found is None or not stream.time_base:
        return None
    # FFmpeg writes into Matroska when the stream ends, which may begin long after the sound
    return (int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])) / float(stream.time_base) - start


def _upright(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Turn and mirror pixels as the frame's display matrix says; angles between right angles are not honoured.

    Source: FFmpeg, libavutil/display.h: (x, y) is shown at (a x + c y, b x + d y) of the matrix a b u, c d v, ...
    """
    try:
        # Not `frame.side_data`: that refers back to the frame and keeps it alive until the garbage collector runs.
        kinds = SideDataContainer(frame)  # type: ignore[call-arg]  # PyAV's stub leaves out the constructor
        matrices = [bytes(data) for data in kinds if data.type == SideDataType.DISPLAYMATRIX]
    except ValueError:  # PyAV has no name for every kind of side data; the angle can be had without.
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    if not matrices:
        return pixels
    a, b, _, c, d = np.frombuffer(matrices[0], dtype=np.int32)[:5].tolist()
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.swapaxes(0, 1)
        across, down = c, b
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
