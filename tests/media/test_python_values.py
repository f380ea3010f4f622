"""What people hold in Python is the same picture, whatever holds it."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segue.errors import MediaError
from segue.media import open_media, read_frames, read_image

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
CLIP = np.stack([PIXELS, PIXELS + 9])


def png(pixels=PIXELS):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file


def closed():
    file = png()
    file.close()
    return file


@pytest.mark.parametrize(
    "make",
    [
        lambda path: str(path),
        lambda path: path,
        lambda path: open_media(path),
        lambda path: path.read_bytes(),
        lambda path: bytearray(path.read_bytes()),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda _: Image.fromarray(PIXELS),
        lambda _: PIXELS.transpose(2, 0, 1),
        lambda _: torch.tensor(PIXELS),
        lambda _: torch.tensor(PIXELS).permute(2, 0, 1),
        lambda _: (torch.tensor(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
        lambda _: torch.tensor(PIXELS).double() / 255,
        lambda _: PIXELS / 255,
    ],
)
def test_an_image_is_the_same_whatever_holds_it(tmp_path, make):
    (tmp_path / "a.png").write_bytes(png().getvalue())
    media = open_media(make(tmp_path / "a.png"))
    assert (media.kind, media.size) == ("image", (4, 5))
    np.testing.assert_array_equal(read_image(media), PIXELS)


def test_a_file_that_gives_less_than_it_is_asked_for_is_read_to_its_end():
    pieces = iter([png().getvalue()[:20], png().getvalue()[20:], b""])
    pipe = SimpleNamespace(read=lambda _: next(pieces))
    np.testing.assert_array_equal(read_image(open_media(pipe)), PIXELS)


@pytest.mark.parametrize(
    "clip",
    [
        CLIP,
        CLIP.transpose(0, 3, 1, 2),
        torch.tensor(CLIP).permute(0, 3, 1, 2) / 255,
        list(CLIP),
        tuple(torch.tensor(CLIP).permute(0, 3, 1, 2)),
        [Image.fromarray(frame) for frame in CLIP],
        [png(CLIP[0]), png(CLIP[1]).getvalue()],
    ],
)
def test_a_clip_is_the_same_whatever_holds_its_frames(clip):
    media = open_media(clip)
    assert (media.kind, media.count) == ("video", 2)
    np.testing.assert_array_equal(read_frames(media, [0, 1]).pixels, CLIP)


def test_frames_of_decoded_pixels_have_the_times_that_are_known_of_them():
    media = replace(open_media(CLIP), fps=2.0)
    assert [media.seconds_at(1), open_media(CLIP).seconds_at(1)] == [0.5, None]
    assert np.isnan(read_frames(media, [1]).seconds).all()
    timed = replace(media, seconds=np.array([0, 0.3]))
    assert timed.seconds_at(1) == 0.3 and read_frames(timed, [1, 0]).seconds.tolist() == [0.3, 0]


def test_deep_frames_share_a_window_and_say_so():
    frames = [Image.fromarray(np.full((2, 2), value, np.uint16)) for value in (1000, 3000)]
    for frame in frames:
        frame.putpixel((0, 0), 0)
    media = open_media(frames)
    assert media.notes == ("windowed 0 to 3,000",)
    assert read_frames(media, [0, 1]).pixels[:, 1, 1, 0].tolist() == [85, 255]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://example.org/a.png", "is a URL, which is not fetched here: download it first"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("s3://bucket/a.png", "is a URL"),
        ([], "is empty"),
        ([PIXELS, CLIP], r"frame 1 of the list is Media\(<video>"),
        ([PIXELS, PIXELS[:2]], "frame 1 of the list"),
        (PIXELS.astype(np.int64), "cannot take an array of int64"),
        (PIXELS[..., :2], "expected RGB as uint8"),
        (PIXELS.astype(np.float32), "values from 0 to 59; floating point pixels go from 0 to 1: divide by 255"),
        (np.full((2, 2, 3), np.nan), "values from nan"),
        (io.StringIO("x"), "open it in binary mode"),
        (closed(), "cannot be read .*closed file.*; open it anew"),
        (Image.new("RGB", (0, 0)), "is 0x0; expected one pixel or more"),
        (Image.new("L", (3, 0)), "is 3x0"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_to_do(given, told):
    with pytest.raises(MediaError, match=told):
        open_media(given)
