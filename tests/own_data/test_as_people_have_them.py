"""Folders as tools and people leave them: each loads, or says what is passed over."""

import json
import os
import unicodedata

import layouts
import numpy as np
import pytest
from layouts import SIZE, SQUARE, box_mask
from PIL import Image

from segue.data.base import rng_for
from segue.errors import DataError, MediaError
from segue.own_data.doctor import examine, repair
from segue.own_data.finding import locate
from segue.own_data.folder import load, splits, survey

BOX = box_mask(10, 10, 20, 12).astype(np.uint8) * 255


def get(dataset, row=0):
    return dataset.get(row, rng_for(0, 0, 0))


def areas(root, split="all", **options):
    dataset = load(root, split, **options)
    return [
        sum(int(region.masks.dense(0).sum()) for region in get(dataset, row).regions) for row in range(len(dataset))
    ]


def kinds(root, **options):
    return {finding.kind for finding in examine(root, **options).report.findings}


def coco(names, *, size=SIZE, segmentation=None, **more):
    return {
        "images": [{"id": n, "file_name": name, "height": size[0], "width": size[1]} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "box"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": segmentation or [SQUARE], **more}
            for n in range(len(names))
        ],
    }


def written(root, names, **more):
    for seed, name in enumerate(names):
        layouts.write_image(root / "images" / name, seed=seed)
    layouts.write_json(root / "annotations.json", coco(more.pop("called", names), **more))
    return root


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_annotations_are_read_in_their_encoding(tmp_path, encoding, caplog):
    written(tmp_path, ["1.png"])
    text = (tmp_path / "annotations.json").read_text().replace("box", "红色方块")
    (tmp_path / "annotations.json").write_bytes(json.dumps(json.loads(text), ensure_ascii=False).encode(encoding))
    assert [region.phrase for region in get(load(tmp_path, "all")).regions] == ["红色方块"]
    assert bool(caplog.text) == (encoding != "utf-8-sig")


OLD = {"big5": "紅色方塊", "cp1252": "l’hélice Gefäß"}


@pytest.mark.parametrize(("encoding", "words"), OLD.items())
def test_old_code_pages_are_read_where_only_one_fits(tmp_path, encoding, words, caplog):
    written(tmp_path, ["1.png"])
    text = json.dumps(coco(["1.png"]), ensure_ascii=False).replace("box", words)
    (tmp_path / "annotations.json").write_bytes(text.encode(encoding))
    assert [region.phrase for region in get(load(tmp_path, "all")).regions] == [words.lower()]
    assert encoding in caplog.text


UNSURE = {"euc_kr": "빨간 상자", "shift_jis": "赤い箱", "euc_jp": "赤い箱", "cp1251": "красный ящик", "gb18030": "狗"}


@pytest.mark.parametrize(("encoding", "words"), UNSURE.items())
def test_an_encoding_that_cannot_be_told_is_not_guessed(tmp_path, encoding, words):
    written(tmp_path, ["1.png"])
    text = json.dumps(coco(["1.png"]), ensure_ascii=False).replace("box", words)
    (tmp_path / "annotations.json").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"annotations\.json cannot be read: its text .*; save it as UTF-8$"):
        load(tmp_path, "all")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_the_same_however_a_system_writes_them(tmp_path, form):
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "gefäß")
    name = unicodedata.normalize(form, "gefäß")
    assert areas(written(tmp_path / "coco", [f"{name}.png"], called=[f"{other}.png"])) == [400]
    for place in ("masks", "yolo"):
        layouts.write_image(tmp_path / place / f"images/{name}.png")
    layouts.write_mask(tmp_path / f"masks/masks/{other}.png", BOX)
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / f"yolo/labels/{other}.TXT").write_text("0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    (tmp_path / "yolo/labels/gone.txt").write_text("0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    (tmp_path / "yolo/classes.txt").write_text("box\n")
    assert areas(tmp_path / "masks", phrase="box") == [240]
    assert areas(tmp_path / "yolo") == [600]
    assert "passed_over" in kinds(tmp_path / "yolo"), "a label of no image is told"


def test_what_systems_leave_behind_passes_by(tmp_path):
    written(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "._annotations.json").write_bytes(b"\0\5\x16\7\xb0")
    (tmp_path / "settings.json").write_text("{ // of an editor")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    assert areas(tmp_path) == [400] * 3
    assert kinds(tmp_path) == {"passed_over"}


PATHS = [
    "%31.png",
    "images\\1.png",
    "..\\..\\label-studio\\media\\upload\\4\\1.png",
    "/home/me/work/1.png",
    "C:\\data\\images\\1.png",
]


@pytest.mark.parametrize(
    "called", [*PATHS, "extra/folder/1.png", "1", "1.PNG", "file:///tmp/x/1.png", "0123abcd-1.png"]
)
def test_a_picture_is_found_however_its_path_is_written(tmp_path, called):
    assert areas(written(tmp_path, ["1.png"], called=[called])) == [400]


def test_folders_above_the_data_part_no_groups(tmp_path):
    written(tmp_path / "mine", ["1.png"])
    here = tmp_path / "mine" / "images"
    names = [str(here / "1.png"), str(here / "p2" / "2.png"), "/home/me/p3/images/3.png", "C:/p4/4.png"]
    names += ["export/data/images/5.png", "images/p6/6.png"]
    layouts.write_json(tmp_path / "mine" / "annotations.json", coco(names))
    groups = [names[0], "p2", names[2], "C:/p4", names[4], "p6"]
    assert [row.entry.group for row in survey(tmp_path / "mine").rows] == groups


def test_an_absolute_path_inside_the_data_is_found(tmp_path):
    assert areas(written(tmp_path, ["1.png"], called=[str(tmp_path / "images" / "1.png")])) == [400]


def test_several_pictures_that_fit_equally_well_are_listed(tmp_path):
    for place in ("a/x", "b/x"):
        layouts.write_image(tmp_path / place / "1.png")
    assert locate([tmp_path], "/old/a/x/1.png") == tmp_path / "a/x/1.png"
    with pytest.raises(MediaError, match=r"could be any of .*a/x/1\.png, .*b/x/1\.png"):
        locate([tmp_path], "/old/1.png")


def test_nothing_outside_the_data_is_given(tmp_path):
    layouts.write_image(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(MediaError, match="there is no"):
            locate([tmp_path / "data"], name)


def test_coco_as_downloaded_takes_the_instances(tmp_path):
    for split in ("train", "val"):
        for n in range(3):
            layouts.write_image(tmp_path / f"{split}2017" / f"{n}.jpg", seed=n + 10 * (split == "val"))
        layouts.write_json(tmp_path / f"annotations/instances_{split}2017.json", coco([f"{n}.jpg" for n in range(3)]))
        for beside in ("captions", "person_keypoints"):
            layouts.write_json(tmp_path / f"annotations/{beside}_{split}2017.json", coco(["0.jpg"]))
    assert splits(survey(tmp_path).rows) == ["train"] * 3 + ["val"] * 3
    assert kinds(tmp_path) == {"passed_over"}
    assert get(load(tmp_path, "val")).messages[0].parts[0].source.parent.name == "val2017"


def test_a_flat_polygon_of_coco_is_a_polygon(tmp_path):
    assert areas(written(tmp_path, ["1.png"], segmentation=SQUARE)) == [400]


def test_a_crowd_of_coco_is_one_object_and_told(tmp_path):
    assert areas(written(tmp_path, ["1.png"], segmentation=[SQUARE], iscrowd=1)) == [400]
    assert kinds(tmp_path) >= {"crowd"}


@pytest.mark.parametrize("form", ["masks", "coco"])
@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "valid"), ("train2017", "dev")])
def test_folders_of_splits_are_splits_wherever_they_stand(tmp_path, form, names):
    paths = [f"{split}/{n}.png" for split in names for n in range(3)]
    if form == "coco":
        written(tmp_path, paths)
    for seed, path in enumerate(paths):
        layouts.write_image(tmp_path / "images" / path, seed=seed)
        if form == "masks":
            layouts.write_mask(tmp_path / "masks" / path, BOX)
    phrase = "box" if form == "masks" else None
    rows = survey(tmp_path, phrase=phrase).rows
    known = {"training": "train", "valid": "val", "train2017": "train", "dev": "val"}
    assert splits(rows) == [
        known.get(row.entry.names[0].split("/")[0], row.entry.names[0].split("/")[0]) for row in rows
    ]
    assert len({row.entry.group for row in rows}) == len(rows), "a split is no group"


def test_one_folder_named_like_a_split_says_nothing(tmp_path):
    rows = survey(written(tmp_path, [f"test/{n}.png" for n in range(4)])).rows
    assert {row.entry.split for row in rows} == {""}


PLACES = [("image", "mask"), ("imgs", "labels"), ("Images", "GT"), ("img_dir", "ann_dir"), ("images", "annotations")]


@pytest.mark.parametrize(("images", "masks"), PLACES)
def test_folders_of_masks_have_the_names_that_people_give_them(tmp_path, images, masks):
    layouts.write_image(tmp_path / images / "1.png")
    layouts.write_mask(tmp_path / masks / "1.png", BOX)
    assert areas(tmp_path, phrase="box") == [240]


@pytest.mark.parametrize("folder", ["1", "1.png"])
def test_several_masks_of_an_image_in_a_folder_of_its_name_are_united(tmp_path, folder):
    for image in range(2):
        layouts.write_image(tmp_path / f"images/{image}.png", seed=image)
        for number, x in enumerate((0, 30)):
            mask = box_mask(x, 0, 10, 10).astype(np.uint8)
            layouts.write_mask(tmp_path / f"masks/{folder.replace('1', str(image))}/{number}.png", mask)
    assert areas(tmp_path, phrase="box") == [200, 200]


def test_frames_and_their_masks_are_matched_by_number(tmp_path):
    for number in (1, 2, 10):
        layouts.write_image(tmp_path / f"videos/clip/frame_{number}.png", seed=number)
    layouts.write_mask(tmp_path / "masks/clip/mask_00010.png", BOX)
    (row,) = survey(tmp_path, phrase="box").rows
    assert row.entry.frames == (2,)


def test_an_image_takes_no_mask_of_another(tmp_path):
    for name in ("1.png", "image_1.png"):
        layouts.write_image(tmp_path / "images" / name)
    layouts.write_mask(tmp_path / "masks/1.png", BOX)
    assert [bool(row.entry.record.pictures) for row in survey(tmp_path, phrase="box").rows] == [True, False]


def rgba(grey, alpha):
    return np.stack([grey] * 3 + [alpha], axis=2)


MASKS = {
    "upper case": ("1.PNG", BOX),
    "white on nothing": ("1.png", rgba(BOX, BOX)),
    "opaque": ("1.png", rgba(BOX, np.full_like(BOX, 255))),
    "alpha alone": ("1.png", rgba(np.zeros_like(BOX), BOX)),
    "grey and alpha": ("1.png", np.stack([BOX, np.full_like(BOX, 255)], axis=2)),
    "jpeg": ("1.jpg", BOX),
    "gif": ("1.gif", BOX),
    "behind": ("1_mask.png", BOX),
    "behind in capitals": ("1-GT.png", BOX),
    "no ending": ("1", BOX),
    "before": ("mask_1.png", BOX),
    "behind the whole name": ("1.png.png", BOX),
    "one colour": ("1.png", np.stack([BOX, BOX * 0, BOX * 0], axis=2)),
}


@pytest.mark.parametrize(("name", "values"), MASKS.values(), ids=MASKS)
def test_masks_are_found_and_read_as_they_are_saved(tmp_path, name, values):
    layouts.write_image(tmp_path / "images/1.png")
    (tmp_path / "masks").mkdir()
    form = {"1.jpg": "JPEG", "1.gif": "GIF"}.get(name, "PNG")
    Image.fromarray(values).save(tmp_path / "masks" / name, form, **({"quality": 80} if form == "JPEG" else {}))
    (found,) = areas(tmp_path, phrase="box")
    assert abs(found - 240) <= (12 if form == "JPEG" else 0)
    assert ("unsure_mask" in kinds(tmp_path, phrase="box")) == (form == "JPEG")


def test_names_that_differ_in_case_alone_have_their_own_masks(tmp_path):
    for name, size in (("A1.png", 20), ("a1.png", 10)):
        layouts.write_image(tmp_path / "images" / name, seed=size)
        layouts.write_mask(tmp_path / "masks" / name, box_mask(0, 0, size, size).astype(np.uint8))
    if len(list((tmp_path / "images").iterdir())) == 2:  # some file systems take them for one name
        assert areas(tmp_path, phrase="box") == [400, 100]


def test_masks_of_floating_point_are_read_where_they_are_whole_numbers(tmp_path):
    layouts.write_image(tmp_path / "images/1.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(BOX.astype(np.float32)).save(tmp_path / "masks/1.tif")
    assert areas(tmp_path, phrase="box") == [240]
    Image.fromarray(BOX.astype(np.float32) / 2).save(tmp_path / "masks/1.tif")
    with pytest.raises(DataError, match=r"1\.tif has values between whole numbers"):
        areas(tmp_path, phrase="box")


def test_names_that_are_no_text_pass_through_doctor_and_copy(tmp_path):
    for number in range(4):
        layouts.write_image(tmp_path / f"mine/images/{number}\udcff.png", seed=number)
        layouts.write_mask(tmp_path / f"mine/masks/{number}\udcff.png", BOX)
    examined = examine(tmp_path / "mine", phrase="box")
    assert not examined.report.findings and set(splits(examined.survey.rows)) == {"train", "val", "test"}
    repair.write(examined, tmp_path / "copy")
    assert areas(tmp_path / "copy") == [240] * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [{"id": 0, "file_name": name} for name in ("1.png", "2.png")]}, "image 1 has id 0, which another"),
        ({"categories": [{"id": 1, "name": name} for name in ("box", "cup")]}, "category 1 has id 1, which another"),
        ({"categories": []}, "annotation 0: category 1 is named, but it is not there"),
    ],
)
def test_numbers_that_name_two_things_or_none_are_told(tmp_path, change, words):
    written(tmp_path, ["1.png", "2.png"])
    layouts.write_json(tmp_path / "annotations.json", coco(["1.png", "2.png"]) | change)
    with pytest.raises(DataError, match=words):
        load(tmp_path, "all")


@pytest.mark.parametrize("number", ["1", 1.0])
def test_numbers_are_the_same_however_they_are_written(tmp_path, number):
    written(tmp_path, ["0.png", "1.png"])
    content = coco(["0.png", "1.png"])
    content["annotations"][1] |= {"image_id": number, "category_id": number}
    layouts.write_json(tmp_path / "annotations.json", content)
    assert areas(tmp_path) == [400, 400]


def test_coordinates_that_are_shares_are_told(tmp_path):
    written(tmp_path / "coco", ["1.png"], segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.6]])
    with pytest.raises(DataError, match="from 0 to 1, shares"):
        areas(tmp_path / "coco")
    layouts.write_image(tmp_path / "yolo/images/1.png")
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/labels/1.txt").write_text("0 1 1 20 1 20 20\n")
    (tmp_path / "yolo/classes.txt").write_text("box\n")
    assert "bad_coordinate" in kinds(tmp_path / "yolo") and "other_frame" not in kinds(tmp_path / "yolo")


def test_a_box_without_an_outline_is_told(tmp_path):
    written(tmp_path, ["1.png"])
    content = coco(["1.png"])
    content["annotations"][0] |= {"segmentation": [], "bbox": [0, 0, 9, 9]}
    layouts.write_json(tmp_path / "annotations.json", content)
    assert "empty_mask" in kinds(tmp_path)


def test_a_mask_of_what_is_around_the_thing_is_told(tmp_path):
    layouts.write_image(tmp_path / "images/1.png")
    layouts.write_mask(tmp_path / "masks/1.png", 255 - BOX)
    assert "inverted" in kinds(tmp_path, phrase="box")


@pytest.mark.parametrize("size", [0, -40, "40", 40.5, None])
def test_a_stated_size_that_is_none_is_passed_over(tmp_path, size):
    layouts.write_image(tmp_path / "1.png")
    shape = {"label": "box", "shape_type": "polygon", "points": [[0, 0], [20, 0], [20, 20], [0, 20]]}
    record = {"imagePath": "1.png", "imageHeight": size, "imageWidth": size, "shapes": [shape]}
    layouts.write_json(tmp_path / "1.json", record)
    assert areas(tmp_path) == [400] and kinds(tmp_path) == {"few_groups"}


def test_a_whole_number_with_a_point_is_a_size(tmp_path):
    assert "other_size" in kinds(written(tmp_path, ["1.png"], size=(80.0, 120.0)))


@pytest.mark.parametrize(("called", "has_pixels"), [("old.png", False), ("1.png", True)])
def test_a_labelme_file_finds_its_picture_or_says_where_it_lies(tmp_path, called, has_pixels):
    shape = {"label": "box", "shape_type": "polygon", "points": [[0, 0], [20, 0], [20, 20], [0, 20]]}
    record = {"imagePath": called, "imageData": "aGk=", "imageHeight": 40, "imageWidth": 60, "shapes": [shape]}
    layouts.write_json(tmp_path / "1.json", record)
    if has_pixels:
        with pytest.raises(DataError, match="imageData alone; save it beside it as 1.png"):
            load(tmp_path, "all")
    else:
        layouts.write_image(tmp_path / "1.png")
        assert areas(tmp_path) == [400]


def test_a_folder_around_the_data_is_gone_through_and_what_is_packed_is_told(tmp_path):
    (tmp_path / "__MACOSX").mkdir()
    written(tmp_path / "export", ["1.png"])
    assert areas(tmp_path) == [400]
    (tmp_path / "export/annotations.json").write_text('[{"image": "/1.png", "label": []}]')
    (tmp_path / "export/data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"another form \(with image, label\); data\.zip is not looked into: unpack it"):
        survey(tmp_path / "export")


def test_an_empty_file_is_called_empty(tmp_path):
    written(tmp_path, ["1.png"])
    (tmp_path / "annotations.json").write_bytes(b" \n")
    with pytest.raises(DataError, match=r"annotations\.json is empty"):
        load(tmp_path, "all")


def test_two_masks_of_one_image_are_told(tmp_path):
    layouts.write_image(tmp_path / "images/1.png")
    for name in ("1_mask.png", "1_gt.png"):
        layouts.write_mask(tmp_path / "masks" / name, BOX)
    with pytest.raises(DataError, match="could both be the mask"):
        load(tmp_path, "all", phrase="box")


def test_pictures_that_are_not_read_are_listed(tmp_path):
    layouts.write_image(tmp_path / "images/1.png")
    layouts.write_mask(tmp_path / "masks/1.png", BOX)
    (tmp_path / "images/2.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n")
    layouts.write_image(tmp_path / "images/.ipynb_checkpoints/1-checkpoint.png")
    findings = examine(tmp_path, phrase="box").report.by_kind()
    assert [finding.file for finding in findings["passed_over"]] == ["images/2.jp2"]
    assert areas(tmp_path, phrase="box") == [240]


def test_black_masks_are_negatives_and_stay_in_a_corrected_copy(tmp_path):
    for number in range(6):
        layouts.write_image(tmp_path / f"data/images/{number}.png", seed=number)
        layouts.write_mask(tmp_path / f"data/masks/{number}.png", BOX * (number < 4))
    data = tmp_path / "data"
    assert areas(data, phrase="box") == [240] * 4 + [0] * 2
    examined = examine(data, phrase="box")
    assert examined.report.is_clean and len(examined.report.by_kind()["absent"]) == 2
    repair.write(examined, tmp_path / "copy")
    assert sorted(areas(tmp_path / "copy")) == [0, 0, 240, 240, 240, 240]


def photograph(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((96, 64), 50).convert("RGB").save(path, exif=exif)  # shown as 64 wide, 96 high


def test_a_stated_size_before_exif_is_taken_where_the_drawing_is_upright(tmp_path):
    photograph(tmp_path / "images/1.jpg", 6)
    low = [10, 70, 30, 70, 30, 90, 10, 90]
    layouts.write_json(tmp_path / "annotations.json", coco(["1.jpg"], size=(64, 96), segmentation=[low]))
    assert areas(tmp_path) == [400]
    assert "turned_size" in kinds(tmp_path)


@pytest.mark.parametrize(("turn", "corner"), [(6, (44, 70)), (8, (10, 6)), (5, (10, 70)), (7, (44, 6))])
@pytest.mark.parametrize(
    "drawn",
    [[[70, 10, 90, 10, 90, 20, 70, 20]], layouts.rle(box_mask(70, 10, 20, 10, (64, 96)))],
    ids=["polygons", "rle"],
)
def test_what_was_drawn_before_exif_is_told_and_turned_by_a_fix(tmp_path, turn, corner, drawn):
    photograph(tmp_path / "data/images/1.jpg", turn)
    layouts.write_json(tmp_path / "data/annotations.json", coco(["1.jpg"], size=(64, 96), segmentation=drawn))
    with pytest.raises(DataError, match="EXIF"):
        get(load(tmp_path / "data", "all"))
    examined = examine(tmp_path / "data")
    (told,) = examined.report.by_kind()["other_size"]
    assert "EXIF" in told.value and "turned_size" not in examined.report.by_kind()
    repair.write(examined, tmp_path / "copy")
    (region,) = get(load(tmp_path / "copy", "all")).regions
    assert region.box.tolist() == [*corner, corner[0] + 10, corner[1] + 20]


def studio(*annotations, number=0):
    polygon = {"points": [[20, 20], [60, 20], [60, 60]], "polygonlabels": ["box"]}
    shape = {"type": "polygonlabels", "original_width": 60, "original_height": 40, "id": "a"}
    results = [
        []
        if scale is None
        else [{**shape, "value": {**polygon, "points": (np.array(polygon["points"]) * scale).tolist()}}]
        for scale in annotations
    ]  # noqa: E501
    return {
        "data": {"image": f"/data/upload/1/0123abcd-{number}.png"},
        "annotations": [{"result": one} for one in results],
    }


@pytest.mark.parametrize("annotations", [(1, 0.5), (None, 1)])
def test_annotators_who_disagree_are_told_and_an_empty_one_hides_nobody(tmp_path, annotations):
    layouts.write_image(tmp_path / "images/0.png")
    layouts.write_json(tmp_path / "export.json", [studio(*annotations)])
    assert areas(tmp_path)[0] > 0
    assert "disagreement" in kinds(tmp_path)


def test_uploads_of_label_studio_are_groups_of_their_own(tmp_path):
    for number in range(12):
        layouts.write_image(tmp_path / f"images/{number}.png", seed=number)
    layouts.write_json(tmp_path / "export.json", [studio(1, number=number) for number in range(12)])
    assert len(load(tmp_path, "train")) == 10


@pytest.mark.parametrize("place", ["JPEGImages", "Images", "imgs", "image/default", "C:\\me\\Photos", "json"])
def test_folders_that_tools_put_everything_into_are_no_group(tmp_path, place):
    written(tmp_path, [f"{n}.png" for n in range(12)], called=[f"{place}/{n}.png" for n in range(12)])
    assert len(load(tmp_path, "train")) == 10


@pytest.mark.parametrize("place", ["/home/me/work", "D:\\proj\\mine", "../datasets/mine", "s3://bucket/mine"])
def test_folders_of_another_machine_that_all_share_are_no_group(tmp_path, place):
    called = [f"{place}/p{n // 4}/{n}.png" for n in range(12)]
    written(tmp_path, [f"{n}.png" for n in range(12)], called=called)
    assert {row.entry.group for row in survey(tmp_path).rows} == {"p0", "p1", "p2"}
    written(tmp_path, [], called=[f"{place}/{n}.png" for n in range(12)])
    assert len(load(tmp_path, "train")) == 10


def test_data_without_a_row_say_so_and_not_that_groups_are_few(tmp_path):
    layouts.write_json(tmp_path / "annotations.json", coco(["1.png"]) | {"annotations": []})
    with pytest.raises(DataError, match=r"has not one row; `segue doctor .*` says what is left out"):
        load(tmp_path, "train")


def test_too_few_groups_name_the_option_with_an_example(tmp_path):
    written(tmp_path, [f"p/{n}.png" for n in range(4)])
    with pytest.raises(DataError, match=r"--group '\(\[\^/\]\+\)\$'"):
        load(tmp_path, "val")
    assert len(load(tmp_path, "val", group="([^/]+)$")) == 1


def test_a_cvat_file_in_another_encoding_is_read(tmp_path):
    layouts.write_image(tmp_path / "images/1.jpg")
    body = '<image name="1.jpg" width="60" height="40"><polygon label="方块" points="10,5;30,5;30,25;10,25"/></image>'
    text = f'<?xml version="1.0" encoding="gbk"?><annotations>{body}</annotations>'
    (tmp_path / "a.xml").write_bytes(text.encode("gbk"))
    assert areas(tmp_path) == [400]


def test_a_cvat_file_with_entities_is_refused(tmp_path):
    (tmp_path / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')
    with pytest.raises(DataError, match="entities"):
        load(tmp_path, "all")


def test_a_size_that_no_image_has_is_told_and_takes_no_memory(tmp_path):
    assert "other_size" in kinds(written(tmp_path, ["1.png"], size=(10**9, 10**9)))


@pytest.mark.parametrize(
    "number", [10**400, float("inf"), True, None, "1"], ids=["huge", "infinite", "true", "none", "text"]
)
def test_a_coordinate_that_is_no_number_is_a_finding(tmp_path, number):
    written(tmp_path, ["1.png"], segmentation=[[number, 0, 0, 1, 5, 5]])
    assert {"bad_coordinate"} <= kinds(tmp_path)


def test_an_object_of_a_hundred_thousand_polygons_is_a_finding(tmp_path):
    written(tmp_path, ["1.png"], segmentation=[[0, 0, 1, 0, 1, 1]] * 100_001)
    assert "bad_mask" in kinds(tmp_path)


def test_a_pipe_among_the_pictures_is_a_finding(tmp_path):
    written(tmp_path, ["1.png"], called=["1.png", "2.png"])
    os.mkfifo(tmp_path / "images/2.png")
    assert "unreadable_file" in kinds(tmp_path)


def test_a_mask_that_is_no_listed_format_starts_no_program(tmp_path):
    layouts.write_image(tmp_path / "images/1.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\nshowpage\n")
    (finding,) = examine(tmp_path, phrase="box").report.by_kind()["unreadable_file"]
    assert "no image or video of a supported format" in finding.value


LINKED = {
    "coco": lambda root: layouts.write_json(root / "annotations.json", coco(["1.png"])),
    "pictures": lambda root: (root / "masks").symlink_to(root.parent / "disk/masks"),
    "yolo": lambda root: (root / "labels").mkdir() or (root / "labels/batch").symlink_to(root.parent / "disk/labels"),
}


@pytest.mark.parametrize("lay_out", LINKED.values(), ids=LINKED)
def test_linked_folders_are_gone_into_but_not_round_in_circles(tmp_path, lay_out):
    layouts.write_image(tmp_path / "disk/images/1.png")
    layouts.write_mask(tmp_path / "disk/masks/batch/1.png", BOX)
    (tmp_path / "disk/labels").mkdir()
    (tmp_path / "disk/labels/1.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
    root = tmp_path / "my"
    (root / "images").mkdir(parents=True)
    (root / "data.yaml").write_text("names: [box]")
    (root / "images/batch").symlink_to(tmp_path / "disk/images")
    for name, target in {"whole": root, "above": tmp_path, "same": root / "images"}.items():
        (root / "images" / name).symlink_to(target)
    (tmp_path / "disk/images/round").symlink_to(tmp_path / "disk/images")
    lay_out(root)
    assert len(areas(root, phrase="box")) == 1
