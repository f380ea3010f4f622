"""Folders of numbered pictures."""

import numpy as np
import pytest
from PIL import Image

from segue.errors import LimitError, MediaError
from segue.media import Limits, iter_frames, open_media, read_frames


@pytest.fixture
def folder_of(tmp_path):
    """Writes pictures of these names, each filled with its place in the list."""

    def make(*names, size=(6, 4)):
        for place, name in enumerate(names):
            Image.new("RGB", size, (place * 10,) * 3).save(tmp_path / name)
        return tmp_path

    return make


@pytest.mark.parametrize(
    "names",
    [
        ("00000.png", "00001.png", "00002.png"),
        ("8.png", "9.png", "10.png"),
        ("frame_2.png", "frame_30.png", "frame_100.png"),
        ("shot-1.PNG", "shot-2.bmp", "shot-3.tif"),
    ],
)
def test_frames_stand_in_the_order_of_their_numbers(names, folder_of):
    media = open_media(folder_of(*names))
    assert (media.kind, media.size, media.count, media.fps) == ("video", (4, 6), 3, None)
    assert [int(pixels[0, 0, 0]) for _, _, pixels in iter_frames(media)] == [0, 10, 20]
    frames = read_frames(media, [2, 0, 2])
    assert frames.pixels[:, 0, 0, 0].tolist() == [20, 0, 20]
    assert np.isnan(frames.seconds).all(), "a folder has no clock"


def test_hidden_files_folders_and_other_files_do_not_count(folder_of):
    folder = folder_of("00000.png", "00001.png", ".00002.png")
    (folder / "notes.txt").write_text("not a frame")
    (folder / "00003.png").mkdir()
    assert open_media(folder).count == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "has no frames"),
        (("00000.png", "cover.png"), "cover.png is no frame"),
        (("1.png", "01.png"), "two frames with one number"),
        (("a1.png", "b2.png"), "mixes frames of several videos"),
    ],
)
def test_a_folder_that_is_no_video_says_why(names, message, folder_of):
    with pytest.raises(MediaError, match=message):
        open_media(folder_of(*names))


def test_a_frame_of_another_size_is_named(folder_of):
    folder = folder_of("0.png", "1.png")
    Image.new("RGB", (9, 9)).save(folder / "1.png")
    media = open_media(folder)
    with pytest.raises(MediaError, match=r"1\.png is 9x9 where 6x4 was expected"):
        list(iter_frames(media))


def test_a_broken_frame_is_named_and_the_others_are_read(folder_of):
    folder = folder_of("0.png", "1.png", "2.png")
    (folder / "1.png").write_bytes(b"broken")
    media = open_media(folder)
    assert read_frames(media, [0, 2]).index.tolist() == [0, 2]
    with pytest.raises(MediaError, match=r"1\.png begins with b'broken'"):
        read_frames(media, [1])


def test_a_folder_that_changed_is_noticed(folder_of):
    folder = folder_of("0.png", "1.png")
    media = open_media(folder)
    (folder / "1.png").unlink()
    with pytest.raises(MediaError, match="had 2 frames when it was opened and has 1 now"):
        list(iter_frames(media))


@pytest.mark.parametrize("limits", [Limits(frames=1), Limits(pixels=23), Limits(file_bytes=100)])
def test_a_folder_above_a_limit_is_refused(limits, folder_of):
    with pytest.raises(LimitError, match="Limits"):
        open_media(folder_of("0.png", "1.png"), limits)
