"""Masks as pictures beside images and videos."""

import layouts
import numpy as np
import pytest
from layouts import SIZE, answers, box_mask
from PIL import ExifTags, Image, ImageOps

from segue.data.base import rng_for
from segue.errors import ConfigError, DataError, MediaError
from segue.own_data.doctor import examine
from segue.own_data.folder import load, survey

LEFT, RIGHT = box_mask(5, 5, 10, 10), box_mask(40, 5, 10, 12)


def get(dataset, row=0, index=0):
    return dataset.get(row, rng_for(0, 0, index))


def by_phrase(sample, frame=0):
    return {region.phrase: int(region.masks.dense(frame).sum()) for region in sample.regions}


def values(**masks):
    """A picture whose pixels have the values that the masks are named by, as v1=..., v255=..."""
    picture = np.zeros(SIZE, np.uint8)
    for name, mask in masks.items():
        picture[mask] = int(name[1:])
    return picture


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("place", ["1", "patient3/1"])
def test_a_binary_mask_shows_what_the_phrase_says(tmp_path, value, place):
    layouts.write_image(tmp_path / f"images/{place}.jpg")
    layouts.write_mask(tmp_path / f"masks/{place}.png", LEFT.astype(np.uint8) * value)
    sample = get(load(tmp_path, "all", phrase="blood vessel"))
    assert by_phrase(sample) == {"blood vessel": 100}
    assert sample.group == place.partition("/")[0].replace("1", "1.jpg")


def test_a_one_bit_mask_is_read(tmp_path):
    layouts.write_image(tmp_path / "images/1.jpg")
    layouts.write_mask(tmp_path / "masks/1.png", LEFT)
    assert by_phrase(get(load(tmp_path, "all", phrase="vessel"))) == {"vessel": 100}


def test_a_folder_of_masks_is_named_by_its_phrase(tmp_path):
    layouts.write_image(tmp_path / "images/1.jpg")
    for phrase, mask in (("left lung", LEFT), ("Right lung", RIGHT)):
        layouts.write_mask(tmp_path / "masks" / phrase / "1.png", mask.astype(np.uint8))
    assert by_phrase(get(load(tmp_path, "all"))) == {"left lung": 100, "right lung": 120}


@pytest.mark.parametrize("is_palette", [False, True])
def test_values_are_named_by_labels_and_null_is_passed_over(tmp_path, is_palette):
    layouts.write_image(tmp_path / "images/1.jpg")
    layouts.write_json(tmp_path / "labels.json", {"1": "cat", "2": "dog", "3": "cow", "255": None})
    picture = Image.fromarray(values(v1=LEFT, v2=RIGHT, v255=box_mask(0, 30, 60, 5)))
    if is_palette:
        picture = picture.convert("P")
        picture.putpalette([channel for number in range(256) for channel in (number, 255 - number, 7)])
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks/1.png")
    assert by_phrase(get(load(tmp_path, "all"))) == {"cat": 100, "dog": 120}


@pytest.mark.parametrize(
    ("picture", "labels", "error", "message"),
    [
        (values(v1=LEFT, v2=RIGHT), None, DataError, r"values \[0, 1, 2\] where 0 and one other"),
        (values(v1=LEFT, v9=RIGHT), {"1": "cat"}, DataError, "value 9, which labels.json does not name"),
        (values(), {"1": "cat"}, DataError, "nothing is marked"),
        (values(v1=LEFT)[:20], None, DataError, "60x20 pixels, its image 60x40"),
        (None, None, DataError, "no mask picture"),
        (values(v1=LEFT), {"one": "cat"}, DataError, "expected values and their names"),
    ],
)
def test_wrong_pictures_are_told(tmp_path, picture, labels, error, message):
    layouts.write_image(tmp_path / "images/1.jpg")
    (tmp_path / "masks").mkdir()
    if picture is not None:
        layouts.write_mask(tmp_path / "masks/1.png", picture)
    if labels is not None:
        layouts.write_json(tmp_path / "labels.json", labels)
    with pytest.raises(error, match=message):
        get(load(tmp_path, "all", phrase="vessel"))


def test_a_black_mask_says_that_the_thing_is_not_there(tmp_path):
    layouts.write_image(tmp_path / "images/1.jpg")
    layouts.write_mask(tmp_path / "masks/1.png", values())
    sample = get(load(tmp_path, "all", phrase="vessel"))
    assert sample.regions == ()
    assert "[SEG]" not in answers(sample)[0]


WHITE, BLACK, GREY = [255] * 3, [0] * 3, [254] * 3


@pytest.mark.parametrize(
    ("places", "palette", "area"),
    [
        (values(v1=~LEFT), [*WHITE, *BLACK], 100),
        (values(v1=LEFT), [*BLACK, *WHITE], 100),
        (values(v1=LEFT, v2=~LEFT), [*GREY, *WHITE, *BLACK], 100),
        (values(v1=~LEFT), [*GREY, *BLACK], 2300),
        (values(v1=LEFT), [*BLACK, *BLACK], 100),
        (values(), [*WHITE, *BLACK], 2400),
        (values(v1=LEFT | ~LEFT), [*WHITE, *BLACK], 0),
        (values(v1=LEFT | ~LEFT), [*BLACK, *WHITE], 2400),
    ],
)
@pytest.mark.parametrize("form", ["png", "gif"])
def test_a_palette_of_black_and_white_counts_as_it_is_shown(tmp_path, places, palette, area, form):
    layouts.write_image(tmp_path / "images/1.jpg")
    (tmp_path / "masks").mkdir()
    picture = Image.fromarray(places)
    picture.putpalette(palette)
    picture.save(tmp_path / f"masks/1.{form}", **({"optimize": False} if form == "gif" else {}))
    assert sum(by_phrase(get(load(tmp_path, "all", phrase="vessel"))).values()) == area


@pytest.mark.parametrize(("mask", "area"), [("1.png", 100), ({"path": "1.png", "value": 1}, 2300)])
def test_a_mask_picture_of_an_item_counts_as_it_is_shown_unless_a_value_is_named(tmp_path, mask, area):
    layouts.write_image(tmp_path / "images/1.jpg")
    layouts.write_json(tmp_path / "annotations.json", [{"image": "1.jpg", "text": ["vessel"], "mask": [mask]}])
    picture = Image.fromarray(values(v1=~LEFT))
    picture.putpalette([*WHITE, *BLACK])
    picture.save(tmp_path / "1.png")
    assert by_phrase(get(load(tmp_path, "all"))) == {"vessel": area}


def test_values_that_labels_name_are_places_in_a_palette_of_black_and_white(tmp_path):
    layouts.write_image(tmp_path / "images/1.jpg")
    layouts.write_json(tmp_path / "labels.json", {"1": "cat"})
    (tmp_path / "masks").mkdir()
    picture = Image.fromarray(values(v1=LEFT))
    picture.putpalette([*WHITE, *BLACK])
    picture.save(tmp_path / "masks/1.png")
    assert by_phrase(get(load(tmp_path, "all"))) == {"cat": 100}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_is_turned_as_its_exif_says(tmp_path, orientation, dtype):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned = SIZE[::-1] if orientation >= 5 else SIZE
    layouts.write_mask(tmp_path / "images/1.png", np.zeros((*turned, 3), np.uint8))
    (tmp_path / "masks").mkdir()
    Image.fromarray(LEFT.astype(dtype) * 200).save(tmp_path / "masks/1.png", exif=exif)
    eight_bits = Image.fromarray(LEFT.astype(np.uint8))
    eight_bits.getexif()[ExifTags.Base.Orientation] = orientation
    shown = np.asarray(ImageOps.exif_transpose(eight_bits)) > 0
    (region,) = get(load(tmp_path, "all", phrase="vessel")).regions
    np.testing.assert_array_equal(region.masks.dense(0), shown)


@pytest.mark.parametrize("form", ["tif", "gif"])
def test_a_mask_of_several_pictures_is_refused(tmp_path, form):
    layouts.write_image(tmp_path / "images/1.jpg")
    (tmp_path / "masks").mkdir()
    first, second = (Image.fromarray(mask.astype(np.uint8) * 255) for mask in (LEFT, RIGHT))
    first.save(tmp_path / f"masks/1.{form}", save_all=True, append_images=[second])
    with pytest.raises(DataError, match=f"the mask 1.{form} holds 2 pictures where one was expected"):
        get(load(tmp_path, "all", phrase="vessel"))


@pytest.mark.parametrize("form", ["tif", "gif"])
@pytest.mark.parametrize("count", [1, 2])
def test_an_image_of_several_pictures_of_which_one_is_annotated_is_told(tmp_path, form, count):
    layouts.write_mask(tmp_path / "masks/1.png", values(v1=LEFT))
    (tmp_path / "images").mkdir()
    pictures = [Image.fromarray(np.full((*SIZE, 3), 90 * number, np.uint8)) for number in range(count)]
    pictures[0].save(tmp_path / f"images/1.{form}", save_all=True, append_images=pictures[1:])
    assert get(load(tmp_path, "all", phrase="vessel")).frames == (0,)
    report = examine(tmp_path, phrase="vessel").report
    told = [finding.value for finding in report.findings if finding.kind == "media_note"]
    assert told == ["it holds 2 pictures, of which the first alone is annotated and used"] * (count - 1)


def test_masks_need_a_phrase_and_an_image(tmp_path):
    layouts.write_image(tmp_path / "images/1.jpg")
    layouts.write_mask(tmp_path / "masks/1.png", values(v1=LEFT))
    with pytest.raises(ConfigError, match="give the option `phrase`"):
        load(tmp_path, "all")
    layouts.write_mask(tmp_path / "masks/2.png", values(v1=LEFT))
    with pytest.raises(DataError, match="1 masks without an image or frame of that name: masks/2.png"):
        load(tmp_path, "all", phrase="vessel")


@pytest.fixture
def clip(tmp_path):
    """A video of ten frames, 00000.jpg ... 00045.jpg, with masks on four of them; the dog is on the last alone."""
    layouts.write_frames(tmp_path / "videos/walk", 10, step=5)
    layouts.write_json(tmp_path / "labels.json", {"1": "cat", "2": "dog"})
    for number in (0, 10, 20, 45):
        picture = values(v2=RIGHT) if number == 45 else values()
        layouts.write_mask(tmp_path / f"masks/walk/{number:05d}.png", picture)
    return tmp_path


def test_only_annotated_frames_are_shown_and_something_is_seen_on_them(clip):
    dataset = load(clip, "all", frames=2)
    drawn = {get(dataset, index=index).frames for index in range(30)}
    assert drawn == {(0, 9), (2, 9), (4, 9)}
    sample = get(dataset)
    assert [region.phrase for region in sample.regions] == ["dog"]
    assert [int(sample.regions[0].masks.dense(position).sum()) for position in range(2)] == [0, 120]
    assert sample.group == "walk"


def test_a_video_on_which_nothing_is_marked_is_a_bad_sample(clip):
    layouts.write_mask(clip / "masks/walk/00045.png", values())
    with pytest.raises(DataError, match="nothing is marked on it"):
        get(load(clip, "all", frames=2))


def test_images_and_videos_may_lie_side_by_side(clip):
    layouts.write_image(clip / "images/1.jpg")
    layouts.write_mask(clip / "masks/1.png", values(v1=LEFT))
    dataset = load(clip, "all")
    assert [len(get(dataset, row).frames) for row in range(2)] == [1, 4]


def test_an_image_that_cannot_be_read_is_a_bad_sample(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(b"")
    layouts.write_mask(tmp_path / "masks/1.png", values(v1=LEFT))
    with pytest.raises(MediaError, match="is empty"):
        get(load(tmp_path, "all", phrase="vessel"))


@pytest.mark.parametrize("labels", [None, {"255": "cup"}])
def test_a_phrase_that_has_no_effect_is_told(tmp_path, caplog, labels):
    layouts.write_image(tmp_path / "images/1.jpg")
    layouts.write_mask(tmp_path / "masks/1.png", LEFT.astype(np.uint8) * 255)
    if labels:
        layouts.write_json(tmp_path / "labels.json", labels)
    (phrase,) = by_phrase(get(load(tmp_path, "all", phrase="vessel")))
    assert ("the phrase 'vessel' has no effect" in caplog.text) == (phrase == "cup")


@pytest.mark.parametrize("other", ["1st_manual", "gt", "images_old"])
def test_pictures_beside_those_that_are_read_are_told(tmp_path, other):
    layouts.write_image(tmp_path / "images/1.png")
    layouts.write_mask(tmp_path / "mask/1.png", LEFT.astype(np.uint8))
    layouts.write_mask(tmp_path / other / "1.gif", LEFT.astype(np.uint8))
    (told,) = [remark for remark in survey(tmp_path, phrase="box").remarks if remark.kind == "passed_over"]
    assert (told.place, told.text[:26]) == (f"{other}/", "its 1 pictures are not rea")
    assert "masks are those of mask/" in told.text


def test_a_video_of_a_format_that_is_not_read_is_told(tmp_path):
    layouts.write_frames(tmp_path / "videos/clip", 2)
    layouts.write_mask(tmp_path / "masks/clip/00000.png", LEFT.astype(np.uint8))
    for name in ("b.wmv", "._c.wmv", "notes.txt"):
        (tmp_path / "videos" / name).write_bytes(b"")
    told = [(remark.kind, remark.place, remark.text[-3:]) for remark in survey(tmp_path, phrase="box").remarks]
    assert told == [("passed_over", "videos/b.wmv", "MP4")]
