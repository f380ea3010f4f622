"""Animations and files of several pages are clips, or their first picture is taken and that is said."""

import io

import numpy as np
import pytest
from PIL import Image

from segue.errors import LimitError, MediaError
from segue.media import Limits, open_media, read_frames, read_image

COLOURS = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]


def moving(form, sizes=((16, 12),) * 3, **options):
    first, *others = (Image.new("RGB", size, colour) for size, colour in zip(sizes, COLOURS, strict=True))
    file = io.BytesIO()
    first.save(file, form, save_all=True, append_images=others, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_it_is_a_clip_of_all_its_pictures(form):
    timed = {} if form == "TIFF" else {"duration": [100, 300, 100]}
    media = open_media(moving(form, **timed, **({"lossless": True} if form == "WEBP" else {})))
    assert (media.kind, media.count, media.size) == ("video", 3, (12, 16))
    frames = read_frames(media, [2, 0, 1])
    np.testing.assert_allclose(frames.pixels[:, 5, 5].astype(int), [COLOURS[2], COLOURS[0], COLOURS[1]], atol=12)
    if form == "TIFF":
        assert np.isnan(frames.seconds).all() and media.fps is None
    else:
        np.testing.assert_allclose(frames.seconds, [0.4, 0, 0.1], atol=0.02)


@pytest.mark.parametrize("form", ["GIF", "TIFF"])
def test_asked_for_its_first_picture_it_says_that_there_are_more(form):
    media = open_media(moving(form), first=True)
    assert (media.kind, media.count) == ("image", 1) and "the first of 3" in media.notes[0]
    np.testing.assert_array_equal(read_image(media)[0, 0], COLOURS[0])


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_pillow_image_that_is_one_of_several_says_so_and_stays_as_it_is(form, is_loaded):
    picture = Image.open(io.BytesIO(moving(form)))
    if is_loaded:
        picture.paste(picture.getpixel((5, 5)), (0, 0, 5, 5))
    before = np.asarray(picture.copy().convert("RGB"))
    media = open_media(picture)
    [note] = media.notes
    assert media.kind == "image" and note.startswith("the first of 3 ")
    np.testing.assert_array_equal(read_image(media), before)
    np.testing.assert_array_equal(picture.convert("RGB"), before)
    picture.seek(1)
    assert open_media(picture).notes[0].startswith("number 2 of 3 ")
    assert open_media(Image.open(io.BytesIO(moving(form))).copy()).notes == ()


def test_of_pages_that_differ_in_size_the_first_is_taken_and_said():
    media = open_media(moving("TIFF", sizes=((16, 12), (8, 6), (4, 3))))
    assert (media.kind, media.notes) == ("image", ("the first of 3 pages, which differ in size",))


def test_a_still_has_nothing_to_be_said_of():
    media = open_media(Image.new("RGB", (4, 4)))
    assert media.notes == () and media.window is None


def test_more_pictures_than_allowed_are_refused():
    with pytest.raises(LimitError, match="more than 2 frames"):
        open_media(moving("GIF"), Limits(frames=2))


def test_an_animation_that_is_cut_says_so():
    noise = [Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(3)]
    file = io.BytesIO()
    noise[0].save(file, "WEBP", save_all=True, append_images=noise[1:])
    with pytest.raises(MediaError, match="damaged|breaks off"):
        media = open_media(file.getvalue()[:-2000])
        read_frames(media, list(range(3)))
