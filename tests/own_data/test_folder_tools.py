"""Exports of CVAT and Label Studio."""

import logging

import layouts
import numpy as np
import pytest
from layouts import SIZE, box_mask

from segue.data.base import rng_for
from segue.errors import DataError
from segue.own_data.folder import load, survey
from segue.own_data.formats.label_studio import decode_brush

POLYGON = '<polygon label="Vessel" points="10,5;30,5;30,25;10,25"/>'
MASK = '<mask label="Cup" rle="1, 3, 2, 2" left="40" top="30" width="4" height="2"/>'


def get(dataset, row=0, index=0):
    return dataset.get(row, rng_for(0, 0, index))


def by_phrase(sample, frame=0):
    return {region.phrase: int(region.masks.dense(frame).sum()) for region in sample.regions}


@pytest.fixture
def cvat(tmp_path):
    def write(body, **options):
        (tmp_path / "annotations.xml").write_text(f"<annotations><version>1.1</version>{body}</annotations>")
        layouts.write_image(tmp_path / "images/1.jpg")
        layouts.write_frames(tmp_path / "videos/clip.mp4", 12)
        return load(tmp_path, "all", **options)

    return write


def image(*shapes, size='width="60" height="40"', more=""):
    return f'<image id="0" name="1.jpg" {size} {more}>{"".join(shapes)}</image>'


def track(label, frames, outside=(), name=""):
    attribute = f'<attribute name="text">{name}</attribute>' if name else ""
    shapes = "".join(
        f'<polygon frame="{frame}" outside="{int(frame in outside)}" keyframe="1" '
        f'points="{frame},5;30,5;30,25;{frame},25">{attribute}</polygon>'
        for frame in frames
    )
    return f'<track id="0" label="{label}">{shapes}</track>'


SIZES = "<original_size><width>60</width><height>40</height></original_size>"
META = f"<meta><task>{SIZES}</task><source>clip.mp4</source></meta>"


def test_cvat_polygons_and_masks_are_read_and_others_counted(cvat, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = cvat(image(POLYGON, MASK, '<box label="Cup" xtl="0" ytl="0" xbr="5" ybr="5"/>'))
    assert by_phrase(get(dataset)) == {"vessel": 400, "cup": 5}
    assert "1 boxes, lines or points are no masks" in caplog.text


def test_cvat_shapes_of_one_name_are_one_thing_and_attributes_name_them(cvat):
    other = '<polygon label="Vessel" points="20,15;40,15;40,35;20,35"/>'
    named = '<polygon label="Vessel" points="0,0;5,0;5,5;0,5"><attribute name="text">the corner</attribute></polygon>'
    assert by_phrase(get(cvat(image(POLYGON, other, named)))) == {"vessel": layouts.UNION, "the corner": 25}


def test_cvat_subsets_are_splits(cvat, tmp_path):
    cvat(image(POLYGON, more='subset="Validation"'))
    assert get(load(tmp_path, "val")).id == "val/1.jpg"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (image(POLYGON, size='width="64" height="40"'), "annotated at 64x40"),
        (image('<polygon label="a" points="1,2"/>'), "2 numbers"),
        (image('<polygon label="a" points="1,2;x,3"/>'), "damaged"),
        (image('<polygon label="a" points="1,2;90,2;90,20"/>'), "outside its image"),
        (image('<mask label="a" rle="8" left="0" top="0" width="4" height="2"/>'), "empty"),
        (image('<mask label="a" rle="9" left="0" top="0" width="4" height="2"/>'), "cover 9 pixels"),
    ],
)
def test_wrong_cvat_shapes_are_bad_samples(cvat, body, message):
    with pytest.raises(DataError, match=message):
        get(cvat(body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (image(POLYGON, size=""), "'height' is missing"),
        (track("a", [0]) + "<source>a.mp4</source><source>b.mp4</source>", "speaks of 2 videos"),
        ("<image", "XML"),
    ],
)
def test_files_that_are_no_cvat_export_are_told(cvat, body, message):
    with pytest.raises(DataError, match=message):
        cvat(body)


def test_cvat_tracks_follow_objects_through_a_video(cvat):
    dataset = cvat(META + track("Boat", range(2, 7), outside=[6]) + track("Boat", [4], name="the second"), frames=None)
    sample = get(dataset)
    assert sample.frames == (2, 3, 4, 5, 6)
    boat, second = sample.regions if sample.regions[0].phrase == "boat" else sample.regions[::-1]
    assert [int(boat.masks.dense(position).sum()) // 20 for position in range(5)] == [28, 27, 26, 25, 0]
    assert [int(second.masks.dense(position).sum()) // 20 for position in range(5)] == [0, 0, 26, 0, 0]


def test_frames_are_found_where_cvat_exports_them_in_the_place_of_a_video(tmp_path):
    meta = "<meta><task></task><source>clip.mp4</source></meta>"
    (tmp_path / "annotations.xml").write_text(f"<annotations>{meta}{track('Boat', range(2))}</annotations>")
    for number in range(2):
        layouts.write_image(tmp_path / f"images/frame_{number:06}.PNG", seed=number)
    assert get(load(tmp_path, "all", frames=None)).frames == (0, 1)


@pytest.mark.parametrize(("numbers", "marked", "place"), [((300, 301, 302), 301, 1), ((0, 5, 10), 10, 2)])
def test_pictures_that_cvat_exports_are_known_by_the_numbers_of_the_video(tmp_path, numbers, marked, place):
    shape = f'<track label="Boat"><polygon frame="{marked}" points="10,5;30,5;30,25"/></track>'
    (tmp_path / "annotations.xml").write_text(f"<annotations><source>clip.mp4</source>{shape}</annotations>")
    for number in numbers:
        layouts.write_image(tmp_path / f"images/frame_{number:06}.PNG", seed=number)
    assert get(load(tmp_path, "all", frames=None)).frames == (place,)
    (tmp_path / f"images/frame_{marked:06}.PNG").unlink()
    with pytest.raises(DataError, match=rf"speaks of frame {marked}, .* no frame_{marked:06}; export"):
        load(tmp_path, "all")


def test_pictures_that_were_no_video_count_by_their_place(tmp_path):
    (tmp_path / "annotations.xml").write_text(f"<annotations><meta/>{track('Boat', [1])}</annotations>")
    for number in (1, 2):
        layouts.write_image(tmp_path / f"images/frame_{number:06}.png", seed=number)
    assert get(load(tmp_path, "all", frames=None)).frames == (1,)


def test_frames_of_a_track_are_drawn_so_that_something_is_seen(cvat):
    dataset = cvat(META + track("Boat", range(10), outside=range(9)), frames=2)
    drawn = [get(dataset, index=index).frames for index in range(30)]
    assert all(len(frames) == 2 and frames[1] == 9 for frames in drawn)
    assert len(set(drawn)) > 5


def test_a_video_that_is_too_short_is_a_bad_sample(cvat):
    with pytest.raises(DataError, match=r"frame 12 is annotated, but clip\.mp4 has 12 frames"):
        get(cvat(META + track("Boat", [12])))


# --- Label Studio


def brush(mask, widths=(3, 4, 8, 16)):
    """A mask as Label Studio's brush writes it: runs where values repeat, literals where they do not."""
    values = np.repeat(np.where(mask, 255, 0).ravel(), 4).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    start = 0
    while start < len(values):
        stop = start
        while stop < len(values) and values[stop] == values[start] and stop - start < 2 ** widths[3]:
            stop += 1
        length = stop - start
        if length < 8:  # a literal of as many values
            bits += f"000{length - 1:03b}" + "".join(f"{value:08b}" for value in values[start:stop])
        else:
            bits += f"111{length - 1:016b}{values[start]:08b}"
        start = stop
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def shape(kind, value, **more):
    result = {"id": "r1", "type": f"{kind}labels", "original_width": 60, "original_height": 40, "image_rotation": 0}
    return {**result, "value": {f"{kind}labels": ["Vessel"], **value}, **more}


SQUARE_PERCENT = {"points": [[100 * x / 60, 100 * y / 40] for x, y in ((10, 5), (30, 5), (30, 25), (10, 25))]}


@pytest.fixture
def studio(tmp_path):
    def write(*results, name="/data/upload/1/4425adf9-scan.jpg", **more):
        task = {"id": 1, "data": {"text": "hello", "image": name}, "annotations": [{"result": list(results), **more}]}
        layouts.write_json(tmp_path / "export.json", [task])
        layouts.write_image(tmp_path / "images/scan.jpg")
        return load(tmp_path, "all")

    return write


@pytest.mark.parametrize(
    "mask", [box_mask(0, 0, 60, 40), box_mask(3, 4, 7, 9), box_mask(59, 39, 1, 1), np.eye(40, 60) > 0]
)
def test_brush_strokes_are_decoded(mask):
    assert (decode_brush(brush(mask), SIZE) == mask).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "breaks off"),
        (brush(box_mask(3, 4, 7, 9))[:-4], "breaks off"),
        (brush(box_mask(3, 4, 7, 9, (40, 61))), "9760 values; an image of 60x40"),
    ],
)
def test_damaged_brush_strokes_are_told(data, message):
    with pytest.raises(DataError, match=message):
        decode_brush(data, SIZE)


def test_polygons_and_strokes_of_one_label_are_one_thing(studio):
    dataset = studio(
        shape("polygon", SQUARE_PERCENT), shape("brush", {"format": "rle", "rle": brush(box_mask(20, 15, 20, 20))})
    )
    assert by_phrase(get(dataset)) == {"vessel": layouts.UNION}


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/1/4425adf9-scan.jpg",
        "/data/local-files/?d=images/scan.jpg",
        "/data/local-files/?d=images%5Cscan.jpg",
        "s3://bucket/some/scan.jpg",
        "https://example.org/scan.jpg?token=1",
        "scan.jpg",
    ],
)
def test_the_image_is_found_by_what_the_task_calls_it(studio, name):
    assert len(get(studio(shape("polygon", SQUARE_PERCENT), name=name)).regions) == 1


def test_a_text_written_for_a_shape_names_it_and_is_no_shape(studio, caplog):
    note = {"id": "r1", "type": "textarea", "value": {"text": ["The left vessel"]}, "original_width": 60}
    assert by_phrase(get(studio(shape("polygon", SQUARE_PERCENT), note))) == {"the left vessel": 400}
    assert "no masks" not in caplog.text


def test_a_label_given_apart_names_its_shape(studio):
    label = {"id": "r1", "type": "labels", "value": {"labels": ["Left vessel"]}, "original_width": 60}
    plain = shape("polygon", {"points": SQUARE_PERCENT["points"]}) | {"type": "polygon"}
    plain["value"].pop("polygonlabels", None)
    assert by_phrase(get(studio(plain, label))) == {"left vessel": 400}


@pytest.mark.parametrize("kind", ["polygonlabels", "labels", "textarea"])
def test_a_shape_of_two_labels_or_texts_is_both(studio, kind):
    both = ["Vessel", "Cup"]
    results = [shape("polygon", {**SQUARE_PERCENT, **({kind: both} if kind == "polygonlabels" else {})})]
    if kind != "polygonlabels":
        results.append({"id": "r1", "type": kind, "value": {"text" if kind == "textarea" else kind: both}})
    assert by_phrase(get(studio(*results))) == {"vessel": 400, "cup": 400}


@pytest.mark.parametrize("name", ["pages", "image"])
def test_of_a_list_of_images_a_shape_lies_on_the_one_at_its_place(tmp_path, name):
    results = [shape("polygon", SQUARE_PERCENT, to_name=name, item_index=place) for place in (1, 0, 1)]
    layouts.write_json(
        tmp_path / "export.json", [{"data": {"pages": ["/a/1.jpg", "/a/2.jpg"]}, "annotations": [{"result": results}]}]
    )
    found = survey(tmp_path)
    assert [(row.entry.names[1], len(row.entry.record)) for row in found.rows] == [("2.jpg", 2), ("1.jpg", 1)]
    assert not found.remarks


def test_sizes_may_be_written_with_a_point(studio):
    assert by_phrase(get(studio(shape("polygon", SQUARE_PERCENT, original_width=60.0)))) == {"vessel": 400}


@pytest.mark.parametrize(
    ("to_names", "expected", "kind"),
    [
        (["image2"], [("2.jpg", 1)], None),
        (["image1", "image2", "image2"], [("1.jpg", 1), ("2.jpg", 2)], None),
        (["picture"], [("1.jpg", 1)], "unsure_mask"),
        (["left", "image2"], [], "refused"),
    ],
)
def test_a_shape_lies_on_the_image_that_it_names(tmp_path, to_names, expected, kind):
    results = [shape("polygon", SQUARE_PERCENT, to_name=name) for name in to_names]
    task = {"data": {"image1": "1.jpg", "note": "2.jpg or so", "image2": "2.jpg"}, "annotations": [{"result": results}]}
    layouts.write_json(tmp_path / "export.json", [task])
    for seed, name in enumerate(("1.jpg", "2.jpg")):
        layouts.write_image(tmp_path / "images" / name, seed=seed)
    found = survey(tmp_path)
    assert [(row.entry.names[0], len(row.entry.record)) for row in found.rows] == expected
    assert [remark.kind for remark in found.remarks] == [kind] * (kind is not None)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (shape("polygon", SQUARE_PERCENT, original_width=64), "annotated at 64x40"),
        (shape("polygon", SQUARE_PERCENT, image_rotation=90), "turned around"),
        (shape("polygon", {"points": [[10, 10], [20, 20]]}), "4 numbers"),
        (shape("polygon", {"points": [[10, 10], [20, 20], [130, 10]]}), "outside its image"),
        (shape("brush", {"rle": brush(box_mask(0, 0, 0, 0))}), "empty"),
        (shape("brush", {"rle": [1, 2, 300]}), "more than bytes"),
        (shape("brush", {}), "no field 'rle'"),
    ],
)
def test_wrong_label_studio_shapes_are_bad_samples(studio, result, message):
    with pytest.raises(DataError, match=message):
        get(studio(result))


def test_boxes_and_cancelled_tasks_are_left_out_with_a_word(studio, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = studio(shape("rectangle", {"x": 1, "y": 1, "width": 5, "height": 5}))
    assert len(dataset) == 0
    assert "1 shapes are no masks, and 1 of 1 tasks have none" in caplog.text
    assert len(studio(shape("polygon", SQUARE_PERCENT), was_cancelled=True)) == 0
