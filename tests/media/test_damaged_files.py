"""Damage that decoders pass over, and files that are no files."""

import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from segue.errors import MediaError
from segue.media import open_media, read_image
from segue.media.image import stored

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def saved(form, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, form, **options)
    return bytearray(file.getvalue())


def chunked(data):
    """The places of a PNG's chunks by kind: start of the body and its length."""
    place, found = 8, {}
    while place < len(data):
        length, kind = int.from_bytes(data[place : place + 4]), bytes(data[place + 4 : place + 8])
        found[kind] = place + 8, length
        place += 12 + length
    return found


def test_a_png_with_a_wrong_checksum_is_damaged():
    data = saved("PNG")
    start, _ = chunked(data)[b"IDAT"]
    data[start + 300] ^= 4
    with pytest.raises(MediaError, match="damaged"):
        read_image(open_media(bytes(data)))


def test_the_checksum_inside_a_png_counts_too():
    data = saved("PNG")
    start, length = chunked(data)[b"IDAT"]
    data[start + length - 1] ^= 1
    data[start + length : start + length + 4] = zlib.crc32(data[start - 4 : start + length]).to_bytes(4)
    with pytest.raises(MediaError, match="damaged"):
        read_image(open_media(bytes(data)))


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_a_damaged_tiff_is_refused(compression):
    data = saved("TIFF", compression=compression)
    if compression is None:
        data = data[:-1000] if data[8:12] != b"\x00\x00\x00\x00" else data
    else:
        data[len(data) // 2] ^= 1
    with pytest.raises(MediaError, match="damaged"):
        read_image(open_media(bytes(data)))


def test_masks_are_checked_as_pictures_are(tmp_path):
    data = saved("PNG")
    start, _ = chunked(data)[b"IDAT"]
    data[start + 300] ^= 4
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(MediaError, match="damaged"):
        stored(tmp_path / "mask.png")


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "picture.png")
    with pytest.raises(MediaError, match="pipe"):
        open_media(tmp_path / "picture.png")


def test_a_name_with_a_zero_byte_is_one_line():
    with pytest.raises(MediaError, match="zero byte"):
        open_media("a\0b.png")


@pytest.mark.parametrize("value", [b"\x0b\0\x01\0\0\0\0\0\x80\x7f", b"\x03\0\x01\0\0\0\x63\0\0\0"])
def test_an_orientation_that_makes_no_sense_is_none(value):
    """A floating point infinity, and 99."""
    plain = saved("JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\x01" + value + b"\0\0\0\0"
    data = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + plain[2:]
    assert open_media(bytes(data)).size == PIXELS.shape[:2]


def test_lost_frames_are_told_with_their_number(make_clip):
    path = make_clip("clip.webm", codec="libvpx", count=40, gop=10, container={"cluster_time_limit": "1000"})
    data = bytearray(path.read_bytes())
    clusters = [place for place in range(len(data)) if data[place : place + 4] == b"\x1f\x43\xb6\x75"]
    assert len(clusters) > 2 and not open_media(path).notes
    for place in clusters[1 : len(clusters) - 1]:
        data[place : place + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    media = open_media(path)
    assert media.count < 40
    assert f"about {40 - media.count} frames seem lost" in media.notes[0]


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm", "clip.mp4"])
def test_a_clip_that_begins_late_is_not_said_to_have_lost_any(make_clip, name):
    codec = "libvpx" if name == "clip.webm" else "libx264"
    assert open_media(make_clip(name, codec=codec, ticks=range(3000, 7000, 100))).notes == ()


def test_a_clip_whose_rate_varies_is_not_said_to_have_lost_any(make_clip):
    ticks = np.cumsum(np.random.default_rng(0).integers(20, 400, 40)).tolist()
    assert open_media(make_clip(count=40, ticks=ticks)).notes == ()
