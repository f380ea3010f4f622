"""LabelMe, VIA, Supervisely, YOLO and Pascal VOC: one square, and what is no mask, written as each tool writes it."""

import base64
import io
import logging
import zlib

import layouts
import numpy as np
import pytest
from layouts import SIZE, SQUARE, box_mask
from PIL import Image

from segue.data.base import rng_for
from segue.errors import DataError
from segue.own_data.doctor import examine, repair
from segue.own_data.folder import load, survey

POINTS = [SQUARE[place : place + 2] for place in range(0, 8, 2)]
SQUARED = box_mask(10, 5, 20, 20)
NUMBERS = range(6)


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "png")
    return file.getvalue()


def packed(data):
    return base64.b64encode(data).decode()


def labelme(root, number, points=POINTS, **more):
    layouts.write_image(root / f"{number}.jpg", seed=number)
    shape = {"label": "vessel", "points": points, "shape_type": "polygon", **more}
    box = {"label": "cup", "points": [[0, 0], [5, 5]], "shape_type": "rectangle"}
    content = {"imagePath": f"{number}.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1], "shapes": [shape, box]}
    layouts.write_json(root / f"{number}.json", content)


def via(root, number, points=POINTS, **more):
    layouts.write_image(root / "images" / f"{number}.jpg", seed=number)
    shape = {"name": "polygon", "all_points_x": [x for x, _ in points], "all_points_y": [y for _, y in points]}
    regions = [{"shape_attributes": shape, "region_attributes": {"kind": {"cup": False, "vessel": True}, **more}}]
    regions.append({"shape_attributes": {"name": "rect"}, "region_attributes": {}})
    path = root / "via.json"
    images = {} if not path.exists() else layouts.json.loads(path.read_text())["_via_img_metadata"]
    images[f"{number}.jpg77"] = {"filename": f"{number}.jpg", "regions": regions}
    layouts.write_json(path, {"_via_img_metadata": images})


def supervisely(root, number, points=POINTS, **more):
    whole = points if isinstance(points, dict) else {"exterior": points, "interior": []}
    layouts.write_image(root / "ds/img" / f"{number}.jpg", seed=number)
    polygon = {"classTitle": "vessel", "geometryType": "polygon", "points": whole}
    objects = [{**polygon, **more}, {"classTitle": "cup", "geometryType": "rectangle"}]
    content = {"size": {"height": SIZE[0], "width": SIZE[1]}, "tags": [], "objects": objects}
    layouts.write_json(root / "ds/ann" / f"{number}.jpg.json", content)


def yolo(root, number, points=POINTS):
    layouts.write_image(root / "images" / f"{number}.jpg", seed=ord(str(number)[0]))
    (root / "labels" / f"{number}.txt").parent.mkdir(parents=True, exist_ok=True)
    shares = " ".join(f"{x / SIZE[1]:.6f} {y / SIZE[0]:.6f}" for x, y in points)
    (root / "labels" / f"{number}.txt").write_text(f"1 {shares}\n0 0.5 0.5 0.1 0.1\n")
    (root / "data.yaml").write_text("train: images\nnames: {0: cup, 1: vessel}\n")


def voc(root, number, points=POINTS):
    layouts.write_image(root / "JPEGImages" / f"{number}.jpg", seed=ord(str(number)[0]))
    mask = np.zeros(SIZE, np.uint8)
    mask[SQUARED] = 2 if points is POINTS else 3
    mask[0, 0] = 255
    layouts.write_mask(root / "SegmentationClass" / f"{number}.png", mask)
    (root / "labelmap.txt").write_text("# label:color\nbackground:0,0,0::\ncup:128,0,0::\nvessel:0,128,0::\n")


FORMS = {"LabelMe": labelme, "VIA": via, "Supervisely": supervisely, "YOLO": yolo, "Pascal VOC": voc}


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def masks(dataset, row=0):
    sample = dataset.get(row, rng_for(0, 0, 0))
    return {region.phrase: region.masks.dense(0) for region in sample.regions}


def test_every_form_is_recognised_and_means_the_same_pixels(form, tmp_path, caplog):
    for number in NUMBERS:
        FORMS[form](tmp_path, number)
    with caplog.at_level(logging.WARNING):
        found = survey(tmp_path)
    assert found.form.startswith(f"{form} (") and len(found.rows) == len(NUMBERS)
    assert form == "Pascal VOC" or "no masks" in caplog.text
    (shown,) = masks(load(tmp_path, "train")).values()
    np.testing.assert_array_equal(shown, SQUARED)
    assert masks(load(tmp_path, "train")).keys() == {"vessel"}
    assert sum(len(load(tmp_path, split)) for split in ("train", "val", "test")) == len(NUMBERS)


ONE_NAME = ("a/1", "b/1", "c/my image", "d/2")
SPLIT_OF = {"a/1.jpg": "train", "b/1.jpg": "val", "c/my image.jpg": "test", "d/2.jpg": "train"}


def splits_told(root):
    return {row.entry.names[0]: row.entry.split for row in survey(root).rows}


@pytest.mark.parametrize("above", ["./images/", "C:\\data\\images\\", ""])
def test_lists_of_yolo_tell_images_of_one_name_apart_and_names_with_blanks(tmp_path, above):
    for name in ONE_NAME:
        yolo(tmp_path, name)
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: [val.txt]\ntest: test.txt\nnames: [cup, vessel]\n")
    for split in ("train", "val", "test"):
        lines = [f"{above}{name}" for name, told in SPLIT_OF.items() if told == split]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n\n")
    assert splits_told(tmp_path) == SPLIT_OF


def test_folders_that_data_yaml_of_yolo_names_are_its_splits(tmp_path):
    for name in ONE_NAME:
        yolo(tmp_path, name)
    (tmp_path / "data.yaml").write_text(
        "train: [images/a, ./images/d]\nval: images/b/\ntest: images/c\nnames: [cup, vessel]\n"
    )
    assert splits_told(tmp_path) == SPLIT_OF


def test_masks_of_voc_in_folders_keep_images_of_one_name_apart(tmp_path):
    for name in ONE_NAME:
        voc(tmp_path, name)
    (tmp_path / "JPEGImages/a/1.txt").write_text("what a tool left beside it")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = [name.removesuffix(".jpg") for name, told in SPLIT_OF.items() if told == split]
        quoted = [f'"{name}"' if " " in name else name for name in names]  # as Datumaro writes them
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(quoted) + "\n")
    assert splits_told(tmp_path) == SPLIT_OF
    assert load(tmp_path, "val").get(0, rng_for(0, 0, 0)).regions


def test_the_doctor_passes_every_form_and_copies_it(form, tmp_path):
    for number in NUMBERS:
        FORMS[form](tmp_path / "mine", number)
    examined = examine(tmp_path / "mine")
    assert examined.report.is_clean, examined.report.findings
    repair.write(examined, tmp_path / "copy")
    np.testing.assert_array_equal(masks(load(tmp_path / "copy", "all"))["vessel"], SQUARED)


def test_a_wrong_shape_is_a_finding_of_its_row(form, tmp_path):
    for number in NUMBERS:
        FORMS[form](tmp_path, number, *([POINTS] if number else [[[10, 5], [900, 5], [30, 25]]]))
    report = examine(tmp_path).report
    assert {finding.row for finding in report.findings if finding.severity == "error"} == {0}


def test_an_image_that_is_missing_is_a_finding(form, tmp_path):
    for number in NUMBERS:
        FORMS[form](tmp_path, number)
    next(tmp_path.rglob("3.jpg")).unlink()
    found = examine(tmp_path)
    is_told = any("3.jpg" in finding.file for finding in found.report.findings)
    assert is_told or (form == "YOLO" and len(found.seen) == len(NUMBERS) - 1)


@pytest.mark.parametrize("content", ["[[", '{"shapes": [{}], "imagePath": "3.jpg", "objects": [{}]}'])
@pytest.mark.parametrize("name", ["LabelMe", "Supervisely"])
def test_one_broken_file_of_many_is_refused_alone(tmp_path, name, content):
    for number in NUMBERS:
        FORMS[name](tmp_path / "mine", number)
    broken = next(path for path in (tmp_path / "mine").rglob("3.*") if path.suffix == ".json")
    broken.write_text(content)
    examined = examine(tmp_path / "mine")
    (error,) = [finding for finding in examined.report.findings if finding.severity == "error"]
    assert error.kind == "refused" and error.file.endswith(broken.name) and len(examined.seen) == len(NUMBERS) - 1
    with pytest.raises(DataError, match=broken.name):
        load(tmp_path / "mine", "train")
    repair.write(examined, tmp_path / "copy")
    assert len(load(tmp_path / "copy", "all")) == len(NUMBERS) - 1


def test_masks_in_labelme_and_holes_and_bitmaps_in_supervisely(tmp_path):
    square = png(np.ones((20, 20), bool))
    labelme(tmp_path / "a", 0, [[10, 5], [30, 25]], shape_type="mask", mask=packed(square), description="the left one")
    assert masks(load(tmp_path / "a", "all")).keys() == {"the left one"}
    np.testing.assert_array_equal(masks(load(tmp_path / "a", "all"))["the left one"], SQUARED)
    bitmap = {"data": packed(zlib.compress(square)), "origin": [10, 5]}
    supervisely(tmp_path / "b", 0, geometryType="bitmap", bitmap=bitmap)
    np.testing.assert_array_equal(masks(load(tmp_path / "b", "all"))["vessel"], SQUARED)
    seen = np.zeros((20, 20, 4), np.uint8)
    seen[..., :3], seen[:10, :, 3] = 255, 255
    picture = io.BytesIO()
    Image.fromarray(seen).save(picture, "png")
    bitmap = {"data": packed(zlib.compress(picture.getvalue())), "origin": [10, 5]}
    supervisely(tmp_path / "e", 0, geometryType="bitmap", bitmap=bitmap)
    np.testing.assert_array_equal(masks(load(tmp_path / "e", "all"))["vessel"], box_mask(10, 5, 20, 10))
    hole = {"exterior": POINTS, "interior": [[[12, 7], [20, 7], [20, 15], [12, 15]]]}
    supervisely(tmp_path / "c", 0, points=hole)
    assert int(masks(load(tmp_path / "c", "all"))["vessel"].sum()) == 400 - 64
    supervisely(tmp_path / "d", 0, points=hole | {"interior": [[[12, 7], [12, 7], [12, 7]]]})
    np.testing.assert_array_equal(masks(load(tmp_path / "d", "all"))["vessel"], SQUARED)


def test_splits_are_lists_of_voc_and_yolo_folders_of_roboflow_and_tags_of_supervisely(tmp_path):
    for number in NUMBERS:
        voc(tmp_path / "voc", number)
        yolo(tmp_path / "robo" / ("train" if number else "valid"), number)
    (tmp_path / "robo/data.yaml").write_text("names: [cup, vessel]\n")
    lists = tmp_path / "voc/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("4\n99\n")
    report = examine(tmp_path / "voc").report
    told = {one.kind: one.value for one in report.findings if one.kind in ("left_out", "no_split")}
    assert told == {"left_out": "there is no image '99'", "no_split": "5.jpg"}
    (lists / "val.txt").write_text("4\n5\n")
    assert not {one.kind for one in examine(tmp_path / "voc").report.findings} & {"left_out", "no_split"}
    assert [len(load(tmp_path / "voc", split)) for split in ("train", "val")] == [4, 2]
    assert [len(load(tmp_path / "robo", split)) for split in ("train", "val")] == [5, 1]


def test_masks_of_voc_may_have_their_colours(tmp_path):
    voc(tmp_path, 0)
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[SQUARED] = (0, 128, 0)
    layouts.write_mask(tmp_path / "SegmentationClass/0.png", colours)
    np.testing.assert_array_equal(masks(load(tmp_path, "all"))["vessel"], SQUARED)


VOCS = [0, 0, 0, 128, 0, 0, 0, 128, 0]
"""VOC's colours of the places 0, 1 and 2, as they stand in a palette."""


@pytest.mark.parametrize("name", ["", None])
def test_a_file_of_labelme_that_names_no_picture_speaks_of_the_one_beside_it(tmp_path, name):
    for number in NUMBERS:
        labelme(tmp_path, number)
        path = tmp_path / f"{number}.json"
        layouts.write_json(path, layouts.json.loads(path.read_text()) | {"imagePath": name})
    assert {row.entry.group for row in survey(tmp_path).rows} == {str(number) for number in NUMBERS}
    assert all(load(tmp_path, "all").get(number, rng_for(0, 0, 0)).regions for number in NUMBERS)


@pytest.mark.parametrize("inner", ["ds/datasets", "ds/datasets/ds/datasets"])
def test_data_sets_of_supervisely_may_lie_in_each_other(tmp_path, inner):
    supervisely(tmp_path, 0)
    supervisely(tmp_path / inner, 0)
    assert [row.entry.names[0] for row in survey(tmp_path).rows] == ["ds/img/0.jpg", f"{inner}/ds/img/0.jpg"]
    assert len(load(tmp_path, "all").get(1, rng_for(0, 0, 0)).regions) == 1


@pytest.mark.parametrize(
    "line", ["{}.jpg", "JPEGImages/{}.jpg", "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png", "{}  1"]
)
def test_lists_of_voc_may_name_files_folders_and_masks(tmp_path, line):
    for number in NUMBERS:
        voc(tmp_path, number)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    for split, numbers in {"train": NUMBERS[:4], "val": NUMBERS[3:], "test": NUMBERS[:1]}.items():
        text = "\n".join(line.format(number) for number in numbers)
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(text)
    report = examine(tmp_path).report
    assert report.splits == {"test": 1, "train": 2, "val": 3}
    told = [finding.value for finding in report.findings]
    assert told == [f"{name} is in the lists of train and {split}; it is taken for {split}" for name, split in TWICE]


TWICE = (("3", "val"), ("0", "test"))


def test_masks_beside_the_arrays_of_labelme2voc_are_read(tmp_path):
    voc(tmp_path, 0)
    (tmp_path / "SegmentationClass").rename(tmp_path / "SegmentationClassPNG")
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "SegmentationClass/0.npy").write_bytes(b"")
    assert list(masks(load(tmp_path, "all"))) == ["vessel"]


def voc_palette(root, palette, file, lines):
    """A mask of a palette, on which the square is place 2, and a file that names classes."""
    voc(root, 0)
    (root / "labelmap.txt").unlink()
    picture = Image.fromarray(SQUARED.astype(np.uint8) * 2)
    picture.putpalette(palette)
    picture.save(root / "SegmentationClass/0.png")
    if file:
        (root / file).write_text(lines)


@pytest.mark.parametrize("file", ["class_names.txt", "class-names.txt", "labels.txt"])
@pytest.mark.parametrize(
    ("lines", "name", "is_told"),
    [
        ("_background_\ncup\nvessel\n", "vessel", False),
        ("__ignore__\n_background_\ncup\nvessel", "vessel", False),
        ("cup\nvessel\npot\n", "pot", True),
    ],
)
def test_names_that_labelme2voc_writes_count_by_their_lines(tmp_path, file, lines, name, is_told):
    voc_palette(tmp_path, VOCS, file, lines)
    np.testing.assert_array_equal(masks(load(tmp_path, "all"))[name], SQUARED)
    found = [finding.file for finding in examine(tmp_path).report.findings if finding.kind == "unsure_mask"]
    assert found == [file] * is_told


@pytest.mark.parametrize(
    ("palette", "lines", "name", "is_told"),
    [
        ([0, 0, 0, 0, 128, 0, 128, 0, 0], "background:0,0,0::\ncat:0,128,0::\ndog:128,0,0::\n", "dog", False),
        ([0, 0, 0, 9, 9, 9, 8, 8, 8], "cat:0,128,0::\ndog:128,0,0::\n", "cat", True),
        ([0] * 9, "cat:0,128,0::\n", "cat", True),
        ([0, 0, 0, 9, 9, 9, 8, 8, 8], "", "bicycle", True),
        (VOCS, "", "bicycle", False),
    ],
)
def test_a_palette_of_voc_counts_as_it_shows_and_one_that_nothing_explains_is_told(
    tmp_path, palette, lines, name, is_told
):
    voc_palette(tmp_path, palette, "labelmap.txt" if lines else "", lines)
    assert masks(load(tmp_path, "all")).keys() == {name}
    found = [finding.value for finding in examine(tmp_path).report.findings if finding.kind == "unsure_mask"]
    assert len(found) == is_told and all("0.png" in value for value in found)


@pytest.mark.parametrize(("kind", "first"), [("1", "x"), ("7", "0.1"), ("inf", "0.1"), ("0.7", "0.1")])
def test_a_line_of_yolo_that_cannot_be_read_is_refused(tmp_path, kind, first):
    yolo(tmp_path, 0)
    (tmp_path / "labels/0.txt").write_text(f"{kind} {first} 0.1 0.2 0.2 0.3 0.4")
    with pytest.raises(DataError, match="0.txt, line 1"):
        load(tmp_path, "all")


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ("[cup, yes]", "yes"),
        ("[1.0, 007]", "007"),
        ("{0: yes, 1: NO}", "no"),
        ("[cup, 2020-01-01]", "2020-01-01"),
        ("[cup, '~']", "~"),
        ("[~, cup]", "cup"),
    ],
)
def test_names_of_yolo_are_what_is_written(tmp_path, names, name):
    yolo(tmp_path, 0)
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    assert masks(load(tmp_path, "all")).keys() == {name}


def test_a_class_of_yolo_that_is_null_has_no_words(tmp_path):
    yolo(tmp_path, 0)
    (tmp_path / "data.yaml").write_text("names: [cup, null]\n")
    assert "no_text" in {finding.kind for finding in examine(tmp_path).report.findings}


@pytest.mark.parametrize(("shape", "point"), [([4, 3], "0.1 0.2 1"), ([4, 2], "0.1 0.2")])
def test_key_points_of_yolo_are_no_polygon(tmp_path, caplog, shape, point):
    yolo(tmp_path, 0)
    (tmp_path / "labels/0.txt").write_text(" ".join(["0 0.25 0.2 0.3 0.25", *[point] * 4]))
    (tmp_path / "data.yaml").write_text(f"kpt_shape: {shape}\nnames: [person]\n")
    assert {finding.kind for finding in examine(tmp_path).report.findings} == {"left_out", "no_object"}
    assert "1 boxes are no masks" in caplog.text


def test_names_of_yolo_that_have_no_numbers_are_told(tmp_path):
    yolo(tmp_path, 0)
    (tmp_path / "data.yaml").write_text('names: {"0:vessel": null}\n')
    with pytest.raises(DataError, match="not classes by their numbers"):
        load(tmp_path, "all")


def test_yolo_labels_without_names_are_told(tmp_path):
    yolo(tmp_path, 0)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match="nothing names their classes"):
        load(tmp_path, "all")
