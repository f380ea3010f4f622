"""TIFF and animated PNG with more than 8 bits: every page, tile, orientation and meaning that such files have."""

import io
import struct
import zlib
from itertools import count

import numpy as np
import pytest

from segue.errors import MediaError
from segue.media import open_media, read_frames, read_image

PAGES = np.random.default_rng(0).integers(0, 65536, (3, 37, 21, 3), dtype=np.uint16)
LONG = 4


def shown(values):
    """Values of 16 bits as 8."""
    return (values.astype(np.int64) + 128) // 257


def tiff(pages, meaning, *, cut=lambda page: [page], **tags):
    """A TIFF of these pages without compression; `cut` makes the pieces in which a page is stored."""
    file, link = bytearray(b"II*\0\0\0\0\0"), 4
    for page in pages:
        pieces, places = [piece.tobytes() for piece in cut(page)], []
        for piece in pieces:
            places.append(len(file))
            file += piece
        height, width, samples = (*page.shape, 1)[:3]
        where, lengths = ("324", "325") if "322" in tags else ("273", "279")
        table = {"256": [width], "257": [height], "258": [8 * page.itemsize] * samples, "262": [meaning]}
        table |= {"277": [samples], "278": [height], where: places, lengths: [len(piece) for piece in pieces]} | tags
        file[link : link + 4] = struct.pack("<I", len(file))
        behind, entries, values = len(file) + 2 + 12 * len(table) + 4, b"", b""
        for tag in sorted(table, key=int):
            packed = struct.pack(f"<{len(table[tag])}I", *table[tag])
            place = packed if len(packed) == 4 else struct.pack("<I", behind + len(values))
            values += packed if len(packed) > 4 else b""
            entries += struct.pack("<HHI", int(tag), LONG, len(table[tag])) + place
        link = behind - 4
        file += struct.pack("<H", len(table)) + entries + bytes(4) + values
    return bytes(file)


def tiles(page, side=16):
    """The tiles of a page, filled up at its right and lower edge."""
    height, width = page.shape[:2]
    padded = np.pad(page, ((0, -height % side), (0, -width % side), *((0, 0),) * (page.ndim - 2)))
    rows, columns = range(0, height, side), range(0, width, side)
    return [padded[top : top + side, left : left + side] for top in rows for left in columns]


def animated_png(frames, default=()):
    """An animated PNG; `default` is what viewers without animation show."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def packed(pixels):
        return zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))

    height, width = frames[0].shape[:2]
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    file += chunk(b"acTL", struct.pack(">II", len(frames), 0))
    file += b"".join(chunk(b"IDAT", packed(pixels)) for pixels in default)
    sequence = count()
    for number, pixels in enumerate(frames):
        file += chunk(b"fcTL", struct.pack(">IIIIIHHBB", next(sequence), width, height, 0, 0, 1, 10, 0, 0))
        if number or len(default):
            file += chunk(b"fdAT", struct.pack(">I", next(sequence)) + packed(pixels))
        else:
            file += chunk(b"IDAT", packed(pixels))
    return file + chunk(b"IEND", b"")


TILES = {"322": [16], "323": [16]}
FILES = {
    "pages": tiff(PAGES, 2),
    "strips": tiff(PAGES, 2, cut=lambda page: [page[:20], page[20:]], **{"278": [20]}),
    "tiles": tiff(PAGES, 2, cut=tiles, **TILES),
    "tiles of planes": tiff(
        PAGES,
        2,
        cut=lambda page: [tile for plane in range(3) for tile in tiles(page[..., plane])],
        **{"284": [2]},
        **TILES,
    ),
    "animated png": animated_png(PAGES),
    "animated png with a picture of its own": animated_png(PAGES[1:], PAGES[:1]),
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_each_picture_of_deep_colours_is_its_own(file):
    media = open_media(file)
    assert (media.count, media.window) == (3, None)
    np.testing.assert_array_equal(read_frames(media, [2, 0, 1]).pixels, shown(PAGES[[2, 0, 1]]))
    np.testing.assert_array_equal(read_frames(media, [2]).pixels, shown(PAGES[2:]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colours_are_turned_upright(orientation):
    pixels = PAGES[0]
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, 1),
    }[orientation]
    media = open_media(tiff(PAGES[:1], 2, **{"274": [orientation]}))
    assert media.size == upright.shape[:2]
    np.testing.assert_array_equal(read_image(media), shown(upright))


WHITE_IS_ZERO, RGB, CMYK = 0, 2, 5
GREY = PAGES[0, ..., 0]


@pytest.mark.parametrize(
    ("values", "meaning", "expected"),
    [
        (65535 - GREY, WHITE_IS_ZERO, np.stack([shown(GREY)] * 3, axis=2)),
        (65535 - np.dstack([PAGES[0] | 255, GREY | 65535]), CMYK, PAGES[0] >> 8),
    ],
    ids=["white is zero", "CMYK"],
)
def test_contrast_is_not_turned_over(values, meaning, expected):
    media = open_media(tiff([values], meaning))
    assert media.notes == ()
    np.testing.assert_array_equal(read_image(media), expected)


def test_a_window_of_inverted_grey_is_of_its_own_values():
    media = open_media(tiff([GREY // 16], WHITE_IS_ZERO), window=(0, 4095))
    np.testing.assert_allclose(read_image(media)[..., 0], 255 - (GREY // 16) * (255 / 4095), atol=0.51)


def test_unsigned_numbers_of_32_bits_are_none_below_zero():
    media = open_media(tiff([np.uint32([[0, 1 << 31, (1 << 32) - 1]])], 1))
    assert media.window == (0, (1 << 32) - 1)
    assert read_image(media)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "meaning", "tags", "told"),
    [
        (GREY.astype(np.float64), 1, {"339": [3]}, "1 of 64 bits, floating point"),
        (GREY.astype(np.float16), 1, {"339": [3]}, "1 of 16 bits, floating point"),
        (PAGES[0].astype(np.float32), RGB, {"339": [3] * 3}, "3 of 32 bits, floating point"),
        (PAGES[0].astype(np.uint32), RGB, {}, "3 of 32 bits"),
        (np.dstack([GREY, GREY]), 1, {"338": [2]}, "2 of 16 bits"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_are_not_supported_are_not_called_damaged(values, meaning, tags, told):
    with pytest.raises(MediaError, match=rf"not supported \(values of a pixel: {told}\); save it with") as error:
        open_media(tiff([values], meaning, **tags))
    assert "damaged" not in str(error.value)


def test_deep_colours_that_are_cut_say_so():
    whole = tiff(PAGES[:1], RGB, **{"279": [1 << 30]})
    with pytest.raises(MediaError, match=r"cannot be decoded|damaged"):
        open_media(io.BytesIO(whole))
