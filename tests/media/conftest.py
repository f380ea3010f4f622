"""Small clips whose every frame carries its own number as eight black or white bars, readable after compression."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

HEIGHT, WIDTH = 48, 64
X264 = {"x264-params": "keyint={gop}:min-keyint={gop}:bframes=2:b-adapt=0:scenecut=0:open-gop={open_gop}"}


def picture_of(number):
    """An RGB picture with `number` in it: bar k is white where bit k is set; the top left corner is red."""
    bars = np.array([(number >> bit) & 1 for bit in range(8)], dtype=np.uint8) * 255
    picture = np.repeat(np.tile(np.repeat(bars, WIDTH // 8), (HEIGHT, 1))[..., None], 3, axis=2)
    picture[:12] = 90
    picture[:12, :16] = (230, 20, 20)
    return picture


@pytest.fixture
def number_in():
    """Reads the number back from a picture that is upright."""

    def read(pixels):
        bars = pixels[HEIGHT - 10, WIDTH // 16 :: WIDTH // 8].mean(axis=-1) > 127
        return int(sum(1 << bit for bit in range(8) if bars[bit]))

    return read


@pytest.fixture
def make_clip(tmp_path):
    """Writes a clip of numbered frames and returns its path."""

    def make(
        name="clip.mp4", *, codec="libx264", count=40, gop=10, ticks=None, matrix=None, container=None, open_gop=0
    ):
        options = {key: value.format(gop=gop, open_gop=open_gop) for key, value in X264.items()}
        with av.open(str(tmp_path / name), "w", options=container or {}) as file:
            stream = file.add_stream(codec, rate=10, options=options if codec == "libx264" else {})
            stream.width, stream.height = WIDTH, HEIGHT
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.gop_size = gop
            if codec == "mpeg4":
                stream.codec_context.max_b_frames = 2
            if matrix is not None:
                stream.set_display_matrix(matrix)
            if ticks:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(picture_of(number), format="rgb24")
                frame.pts, frame.time_base = (ticks[number], Fraction(1, 1000)) if ticks else (number, Fraction(1, 10))
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return tmp_path / name

    return make


@pytest.fixture
def picture():
    """The picture of a number, as `make_clip` encodes it."""
    return picture_of
