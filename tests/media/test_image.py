"""Still images: formats, modes, orientation, refusals."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segue.errors import LimitError, MediaError
from segue.media import Limits, iter_frames, open_media, read_frames, read_image

COLUMNS, ROWS = 3, 2
COLOURS = np.array(
    [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 0, 0], [250, 250, 250]]], dtype=np.uint8
)
PIXELS = COLOURS.repeat(16, axis=0).repeat(16, axis=1)  # whole JPEG blocks, so that colours survive
SHOWN = {  # EXIF orientation -> what a viewer makes of the stored pixels
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.swapaxes(0, 1),
    6: np.rot90(PIXELS, -1),
    7: PIXELS[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(PIXELS, 1),
}


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_header(width, height):
    """A PNG that claims a size and has next to nothing in it."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_orientation_is_applied_to_size_and_pixels(orientation, form):
    media = open_media(encoded(Image.fromarray(PIXELS), form, exif=with_orientation(orientation)))
    assert (media.kind, media.count, media.fps) == ("image", 1, None)
    assert media.size == SHOWN[orientation].shape[:2]
    np.testing.assert_allclose(read_image(media)[8::16, 8::16].astype(int), SHOWN[orientation][8::16, 8::16], atol=12)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_give_their_pixels_back(form):
    image = Image.fromarray(PIXELS)
    content = encoded(image.quantize(8, dither=0) if form == "GIF" else image, form)
    np.testing.assert_array_equal(read_image(open_media(content)), PIXELS)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("1", (2, 1), 1), {}, (255, 255, 255)),
        (Image.new("L", (2, 1), 77), {}, (77, 77, 77)),
        (Image.new("LA", (2, 1), (77, 0)), {}, (77, 77, 77)),
        (Image.new("RGBA", (2, 1), (9, 8, 7, 0)), {}, (9, 8, 7)),
        (Image.new("I;16", (2, 1), 65535), {}, (255, 255, 255)),
        (Image.new("I;16", (2, 1), 32896), {}, (128, 128, 128)),
        (Image.new("I;16", (2, 1), 300), {}, (1, 1, 1)),
        (Image.new("P", (2, 1)), {"transparency": bytes([0, 3])}, (0, 0, 0)),
    ],
    ids=["one_bit", "grey", "grey_alpha", "alpha", "white_16_bit", "mid_16_bit", "dark_16_bit", "palette_alpha"],
)
def test_every_mode_becomes_rgb(image, options, expected):
    pixels = read_image(open_media(encoded(image, "PNG", **options)))
    assert (pixels.shape, pixels.dtype) == ((1, 2, 3), np.uint8)
    assert tuple(pixels[0, 0]) == expected


def test_cmyk_becomes_rgb():
    content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = read_image(open_media(content))[8, 8].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_content_decides_and_not_the_name(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "PNG"))
    np.testing.assert_array_equal(read_image(open_media(str(path))), PIXELS)


def test_one_pixel_is_an_image():
    media = open_media(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"))
    assert media.size == (1, 1)
    assert read_image(media).tolist() == [[[1, 2, 3]]]


def test_an_image_streams_as_a_video_of_one_frame():
    media = open_media(encoded(Image.fromarray(PIXELS), "PNG"))
    ((index, seconds, pixels),) = iter_frames(media)
    assert (index, seconds) == (0, 0.0)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert read_frames(media, [0, 0]).pixels.shape == (2, *PIXELS.shape)


REFUSED = {
    "text": (b"not a picture at all", "begins with b'not a pictur'"),
    "empty": (b"", "is empty"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC image"),
    "cut_jpeg": (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:-500], "damaged or incomplete"),
    "jpeg_header_cut": (encoded(Image.fromarray(PIXELS), "JPEG")[:100], "damaged JPEG"),
    "cut_png": (encoded(Image.fromarray(PIXELS), "PNG")[:-60], "is damaged"),
    "png_of_nothing": (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
    "floating_point": (encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "no finite numbers"),
    "deep_jpeg_2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "expected JPEG, PNG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "expected JPEG, PNG"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_readable_image_is_named_in_one_line(content, message, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        read_image(open_media(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        open_media(tmp_path / "gone.jpg")


def test_a_file_that_disappears_after_opening_is_an_error(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "PNG"))
    media = open_media(path)
    path.unlink()
    with pytest.raises(MediaError, match="cannot be read any more"):
        read_image(media)


def test_a_file_that_changes_size_after_opening_is_an_error_before_it_is_decoded(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "PNG"))
    media = open_media(path)
    path.write_bytes(png_header(30000, 30000))
    with pytest.raises(MediaError, match="30000x30000 where 48x32 was expected"):
        read_image(media)


@pytest.mark.parametrize(
    ("content", "limits"),
    [
        (png_header(30000, 30000), Limits()),
        (png_header(12000, 12000), Limits()),  # Pillow would only warn at this size
        (encoded(Image.fromarray(PIXELS), "PNG"), Limits(pixels=PIXELS.size // 3 - 1)),
        (encoded(Image.fromarray(PIXELS), "PNG"), Limits(file_bytes=20)),
    ],
    ids=["bomb", "large", "pixels", "bytes"],
)
def test_an_image_above_a_limit_is_refused_from_its_header(content, limits):
    with pytest.raises(LimitError, match="Limits"):
        open_media(content, limits)


def test_a_raised_limit_opens_a_large_image_without_a_warning():
    assert open_media(png_header(12000, 12000), Limits(pixels=12000**2)).size == (12000, 12000)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "P"])
def test_pillow_images_are_taken(mode):
    media = open_media(Image.new(mode, (5, 4)))
    assert (media.kind, media.size, read_image(media).shape) == ("image", (4, 5), (4, 5, 3))


def test_a_pillow_image_is_turned_upright():
    image = Image.open(io.BytesIO(encoded(Image.fromarray(PIXELS), "PNG", exif=with_orientation(6))))
    np.testing.assert_array_equal(read_image(open_media(image)), SHOWN[6])


def test_a_pillow_image_above_the_limit_is_refused():
    with pytest.raises(LimitError, match="5x4"):
        open_media(Image.new("RGB", (5, 4)), Limits(pixels=19))


def test_arrays_are_images_or_videos_by_their_dimensions():
    assert (open_media(PIXELS).kind, open_media(PIXELS).size) == ("image", PIXELS.shape[:2])
    video = open_media(np.stack([PIXELS, PIXELS // 2]))
    assert (video.kind, video.size, video.count, video.fps) == ("video", PIXELS.shape[:2], 2, None)
    frames = read_frames(video, [1, 0])
    np.testing.assert_array_equal(frames.pixels, [PIXELS // 2, PIXELS])
    assert np.isnan(frames.seconds).all(), "an array has no clock"


def test_pixels_read_from_an_array_are_a_copy():
    source = PIXELS.copy()
    read_image(open_media(source))[:] = 0
    np.testing.assert_array_equal(source, PIXELS)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.full((4, 5, 3), 2, np.float32),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((1, 2, 4, 5, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "empty", "five_axes"],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(MediaError, match="cannot take an array|from 0 to 1"):
        open_media(pixels)


def test_the_frame_limit_holds_for_arrays():
    with pytest.raises(LimitError, match="more than 1 frames"):
        open_media(np.stack([PIXELS, PIXELS]), Limits(frames=1))
