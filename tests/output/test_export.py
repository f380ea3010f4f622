"""Files of pixels and masks: whole or not at all."""

import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from segue.errors import ConfigError, LimitError, MediaError
from segue.files import atomic_path
from segue.media import iter_frames, open_media, read_frames, read_image
from segue.output.export import OverlayWriter, davis_palette, write_mask_png, write_png

NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def names(folder):
    return [path.name for path in folder.iterdir()]


SMALL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from segue.output.export import OverlayWriter, write_png
# a stand-in for a full disk, in a process of its own: no file, a log included, can grow beyond 8 kB
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
folder, noise = Path(sys.argv[1]), np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
"""


def run_on_a_small_disk(code, folder):
    """What running the code with `folder` and `noise` at hand says on stderr; it must fail."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK + code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr


def test_a_file_written_in_a_good_block_takes_its_place(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert (temporary.parent, temporary.suffix, path.read_text()) == (tmp_path, ".json", "old")
    assert (path.read_text(), names(tmp_path)) == ("new", ["result.json"])


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (OSError(28, "No space left on device"), MediaError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
)
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(raised, caught, tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(caught), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise raised
    assert (path.read_text(), names(tmp_path)) == ("old", ["result.json"])


@pytest.mark.parametrize("place", ["missing/out.png", "file/out.png"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MediaError, match=f"cannot write .*{place}"):
        write_png(tmp_path / place, NOISE)
    assert names(tmp_path) == ["file"]


def test_a_png_gives_its_pixels_back(tmp_path):
    write_png(tmp_path / "a.png", NOISE)
    np.testing.assert_array_equal(read_image(open_media(tmp_path / "a.png")), NOISE)


def test_a_full_disk_leaves_no_half_png(tmp_path):
    said = run_on_a_small_disk("write_png(folder / 'a.png', noise)", tmp_path)
    assert "MediaError: cannot write" in said
    assert names(tmp_path) == []


def test_mask_numbers_are_object_numbers_plus_one_and_the_first_object_keeps_a_shared_pixel(tmp_path):
    masks = np.zeros((3, 4, 6), dtype=bool)
    masks[0, 1:3] = masks[1, 2:] = masks[2, :, 5] = True
    write_mask_png(tmp_path / "m.png", masks)
    image = Image.open(tmp_path / "m.png")
    expected = [[0, 0, 0, 0, 0, 3], [1] * 6, [1] * 6, [2] * 6]
    assert (image.mode, np.array(image).tolist()) == ("P", expected)
    assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize(
    ("number", "colour"),
    [(0, (0, 0, 0)), (5, (128, 0, 128)), (8, (64, 0, 0)), (21, (128, 64, 128)), (255, (224, 224, 192))],
)
def test_the_palette_is_that_of_davis(number, colour):
    assert tuple(davis_palette()[number]) == colour
    assert len(np.unique(davis_palette(), axis=0)) == 256


def test_255_objects_fit_a_mask_png_and_256_do_not(tmp_path):
    masks = np.eye(255, dtype=bool).reshape(255, 15, 17)
    write_mask_png(tmp_path / "m.png", masks)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "m.png")).ravel(), np.arange(1, 256))
    with pytest.raises(LimitError, match="256 objects"):
        write_mask_png(tmp_path / "n.png", np.ones((256, 1, 1), dtype=bool))


def test_no_object_is_a_mask_png_of_background(tmp_path):
    write_mask_png(tmp_path / "m.png", np.zeros((0, 2, 3), dtype=bool))
    assert np.array(Image.open(tmp_path / "m.png")).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("size", "written"), [((48, 64), (48, 64)), ((47, 63), (48, 64)), ((1, 1), (2, 2)), ((3, 2), (4, 2))]
)
def test_a_clip_has_even_sides_and_every_frame_in_its_colours(size, written, tmp_path):
    colours = [(230, 30, 30), (30, 200, 60), (40, 60, 220), (250, 250, 250)]
    with OverlayWriter(tmp_path / "o.mp4", 29.97, size) as writer:
        for colour in colours:
            writer.write(np.full((*size, 3), colour, dtype=np.uint8))
    media = open_media(tmp_path / "o.mp4")
    assert (media.size, media.count, names(tmp_path)) == (written, 4, ["o.mp4"])
    assert media.fps == pytest.approx(29.97, rel=1e-3)
    shown = read_frames(media, range(4)).pixels
    np.testing.assert_allclose(shown[:, -1, -1].astype(int), colours, atol=8)


def test_a_clip_is_what_browsers_play(tmp_path):
    with OverlayWriter(tmp_path / "o.mp4", 25, NOISE.shape[:2]) as writer:
        writer.write(NOISE)
    content = (tmp_path / "o.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index must come first"
    with av.open(str(tmp_path / "o.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_a_slow_clip_keeps_its_rate(tmp_path):
    with OverlayWriter(tmp_path / "o.mp4", 0.5, (16, 16)) as writer:
        for _ in range(3):
            writer.write(np.zeros((16, 16, 3), dtype=np.uint8))
    assert [seconds for _, seconds, _ in iter_frames(open_media(tmp_path / "o.mp4"))] == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_an_impossible_frame_rate_is_refused(fps, tmp_path):
    with pytest.raises(ConfigError, match="frames per second"):
        OverlayWriter(tmp_path / "o.mp4", fps, (16, 16))


def test_a_clip_without_frames_is_an_error_and_no_file(tmp_path):
    with pytest.raises(MediaError, match="no frame was written"), OverlayWriter(tmp_path / "o.mp4", 10, (16, 16)):
        pass
    assert names(tmp_path) == []


def test_a_frame_of_another_size_is_an_error_and_no_file(tmp_path):
    with (
        pytest.raises(MediaError, match="5x4 does not fit the clip of 4x4"),
        OverlayWriter(tmp_path / "o.mp4", 10, (4, 4)) as writer,
    ):
        writer.write(np.zeros((4, 5, 3), dtype=np.uint8))
    assert names(tmp_path) == []


def test_an_interrupted_clip_leaves_the_old_file(tmp_path):
    (tmp_path / "o.mp4").write_text("old")
    with pytest.raises(KeyboardInterrupt), OverlayWriter(tmp_path / "o.mp4", 10, (90, 120)) as writer:
        writer.write(NOISE)
        raise KeyboardInterrupt
    assert ((tmp_path / "o.mp4").read_text(), names(tmp_path)) == ("old", ["o.mp4"])


def test_a_full_disk_leaves_no_half_clip(tmp_path):
    code = """
with OverlayWriter(folder / "o.mp4", 10, (90, 120)) as writer:
    for shift in range(20):
        writer.write(np.roll(noise, shift * 7, axis=1))
"""
    assert "MediaError: cannot write" in run_on_a_small_disk(code, tmp_path)
    assert names(tmp_path) == []
