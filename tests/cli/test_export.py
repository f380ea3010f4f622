"""What was found, written for other tools and read back by the readers of their forms."""

import io
import json
import os
import shutil
import sys
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from pictures import make_frames, make_image, picture
from PIL import Image
from pycocotools.coco import COCO

from segue.data.base import rng_for
from segue.integrations.label_studio import encode_brush
from segue.own_data.folder import load
from segue.own_data.formats.label_studio import decode_brush

BRIGHT = {shift: picture(shift)[..., 0] > 0 for shift in (0, 3, 5, 6, 9)}


@pytest.fixture
def exported(run_segue, tmp_path):
    """Finds "bright" and "dark" in a source and writes them in a form; gives what was said and the folder."""

    def export(source, form, *phrases):
        found, out = tmp_path / "found", tmp_path / "exported"
        assert run_segue("segment", source, *(phrases or ("bright", "dark")), "-o", found).exit_code == 0
        run = run_segue("export", found, form, "-o", out)
        assert run.exit_code == 0, run.stderr
        return run.stderr, out

    return export


@pytest.fixture
def photos(tmp_path):
    for name, shift in (("a", 5), ("b", 9)):
        make_image(tmp_path / "photos" / f"{name}.png", shift)
    return tmp_path / "photos"


def read_back(folder, frames=None):
    """The masks of every phrase on every picture, by our own reader."""
    rows = load(folder, "all", frames=frames)
    samples = [rows.get(number, rng_for(0, 0, number)) for number in range(len(rows))]
    return {one.target_media.name: {r.phrase: np.asarray(r.masks) for r in one.regions} for one in samples}


def assert_exact(found):
    assert {name: sorted(masks) for name, masks in found.items()} == {n: ["bright", "dark"] for n in ("a.png", "b.png")}
    for name, shift in (("a.png", 5), ("b.png", 9)):
        assert (found[name]["bright"][0] == BRIGHT[shift]).all() and (found[name]["dark"][0] == ~BRIGHT[shift]).all()


def test_coco_comes_back_exactly_and_pycocotools_reads_it(exported, photos):
    told, out = exported(photos, "coco")
    assert "4 objects on 2 pictures" in told
    assert_exact(read_back(out))
    content = COCO(str(out / "annotations.json"))
    assert [content.cats[one]["name"] for one in content.getCatIds()] == ["bright", "dark"]
    (first,) = content.loadAnns([1])
    assert first["bbox"] == [5, 4, 12, 8] and first["area"] == 96 and 0 < first["score"] < 1


def test_yolo_polygons_come_back_and_the_error_of_their_area_is_told(exported, photos):
    told, out = exported(photos, "yolo")
    assert "polygons differ from their masks in 0.00% of the area, 0.00% at worst" in told
    assert "split them before you train" in told
    assert_exact(read_back(out))  # the dark part has a hole, which its one polygon goes around


def test_cvat_images_come_back_exactly(exported, photos):
    _, out = exported(photos, "cvat")
    shutil.copytree(photos, out / "images")
    assert_exact(read_back(out))


def test_a_video_in_cvat_is_tracks_frame_by_frame_that_end_where_the_object_goes(exported, tmp_path):
    walk = make_frames(tmp_path / "walk", 4)
    Image.fromarray(np.zeros_like(picture())).save(walk / "00003.png")
    _, out = exported(walk, "cvat", "bright")
    text = (out / "walk.xml").read_text()
    assert text.count('outside="0"') == 3 and text.count('frame="3"') == text.count('outside="1"') == 1
    shutil.copytree(walk, out / "videos" / "walk")
    masks = read_back(out)["walk"]["bright"]
    assert [(mask == BRIGHT[shift]).all() for mask, shift in zip(masks, (0, 3, 6), strict=False)] == [True] * 3
    assert not masks[3].any()


def test_label_studio_predictions_come_back_once_somebody_has_accepted_them(exported, photos):
    _, out = exported(photos, "label_studio")
    tasks = json.loads((out / "tasks.json").read_text())
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=a.png"} and 0 < tasks[0]["predictions"][0]["score"] < 1
    for task in tasks:
        task["annotations"] = [{"result": task.pop("predictions")[0]["result"]}]
    (out / "tasks.json").write_text(json.dumps(tasks))
    shutil.copytree(photos, out / "images")
    assert_exact(read_back(out))


def test_videos_in_label_studio_are_boxes_in_percent_and_it_is_said(exported, tmp_path):
    told, out = exported(make_frames(tmp_path / "walk", 3), "label_studio", "bright")
    assert "boxes alone for videos" in told
    (task,) = json.loads((out / "tasks.json").read_text())
    (row,) = task["predictions"][0]["result"]
    assert [one["frame"] for one in row["value"]["sequence"]] == [1, 2, 3]
    assert row["value"]["sequence"][1] | {"time": 0} == {
        **{"x": 6.25, "y": 12.5, "width": 25.0, "height": 25.0, "rotation": 0, "frame": 2, "enabled": True, "time": 0}
    }


@pytest.mark.parametrize(
    "mask",
    [
        picture(5)[..., 0] > 0,
        np.ones((200, 300), bool),
        np.eye(40, 60) > 0,
        np.random.default_rng(0).random((31, 17)) < 0.5,
    ],
)
def test_brush_strokes_come_back(mask):
    assert (decode_brush(encode_brush(mask), mask.shape) == mask).all()


def test_davis_has_a_palette_picture_for_each_frame(exported, tmp_path):
    _, out = exported(make_frames(tmp_path / "walk", 3), "davis")
    pictures = sorted((out / "walk").iterdir())
    assert [path.name for path in pictures] == ["00000.png", "00001.png", "00002.png"]
    shown = Image.open(pictures[1])
    assert shown.mode == "P" and (np.asarray(shown) == np.where(BRIGHT[3], 1, 2)).all()


def test_ref_vos_has_a_picture_for_each_phrase_and_frame_black_where_nothing_was_found(exported, tmp_path):
    _, out = exported(make_frames(tmp_path / "walk", 3), "ref_vos", "purple", "bright")
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert len(archive.namelist()) == 6

        def read(name):
            return np.asarray(Image.open(io.BytesIO(archive.read(f"Annotations/walk/{name}.png"))))

        assert not read("0/00001").any() and (read("1/00001") == 255 * BRIGHT[3]).all()


def test_frames_of_a_video_are_pictures_for_yolo(exported, tmp_path):
    _, out = exported(make_frames(tmp_path / "walk", 3), "yolo", "bright")
    assert sorted(path.name for path in (out / "images" / "walk").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert (out / "labels" / "walk" / "00002.txt").read_text().startswith("0 0.125000 0.125000")


def test_what_was_asked_of_one_picture_in_two_runs_is_one(run_segue, photos, tmp_path):
    for phrase in ("bright", "dark"):
        assert run_segue("segment", photos, phrase, "-o", tmp_path / "found").exit_code == 0
    assert run_segue("export", tmp_path / "found", "coco", "-o", tmp_path / "exported").exit_code == 0
    assert_exact(read_back(tmp_path / "exported"))


@pytest.mark.parametrize(
    ("form", "formats", "message"),
    [
        ("yolov9", "coco", "did you mean 'yolo'"),
        ("coco", "png", "coco in --formats"),
        ("davis", "coco", "2 of 2 are images"),
    ],
)
def test_what_cannot_be_written_is_told(run_segue, photos, tmp_path, form, formats, message):
    run_segue("segment", photos, "bright", "-o", tmp_path / "found", "--formats", formats)
    run = run_segue("export", tmp_path / "found", form, "-o", tmp_path / "exported")
    assert run.exit_code == 2 and message in run.stderr.replace("\n", " ")
    assert not (tmp_path / "exported").exists()


def test_a_folder_that_is_no_run_is_told(run_segue, photos, tmp_path):
    run = run_segue("export", photos, "coco", "-o", tmp_path / "exported")
    assert run.exit_code == 2 and "manifest.jsonl" in run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("form", ["coco", "yolo", "cvat", "label_studio"])
def test_a_file_whose_name_is_no_text_is_exported(run_segue, tmp_path, form):
    make_image(tmp_path / "photos" / "a.png").rename(tmp_path / "photos" / os.fsdecode(b"caf\xe9.png"))
    assert run_segue("segment", tmp_path / "photos", "bright", "-o", tmp_path / "found").exit_code == 0
    run = run_segue("export", tmp_path / "found", form, "-o", tmp_path / "exported")
    assert run.exit_code == 0, run.stderr
    if form == "cvat":
        assert ElementTree.parse(tmp_path / "exported" / "annotations.xml").find("image").get("name") == "caf\ufffd.png"
    if form == "label_studio":
        (task,) = json.loads((tmp_path / "exported" / "tasks.json").read_text())
        assert task["data"]["image"].endswith("?d=caf%E9.png")


def test_masks_are_not_put_beside_another_picture(run_segue, photos, tmp_path):
    assert run_segue("segment", photos, "bright", "-o", tmp_path / "found").exit_code == 0
    Image.new("RGB", (10, 10)).save(photos / "a.png")
    run = run_segue("export", tmp_path / "found", "coco", "-o", tmp_path / "exported")
    assert run.exit_code == 2 and "a.png is 10x10 where 48x32 was expected" in run.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("frames", "a/result.json does not have its form ('frames')"),
        ("lineage", "a/result.json does not have its form ('lineage')"),
        ("settings", "a is listed in the manifest and holds no result"),
    ],
)
def test_a_result_that_lacks_a_part_is_told(run_segue, photos, tmp_path, name, told):
    assert run_segue("segment", photos, "bright", "-o", tmp_path / "found").exit_code == 0
    path = tmp_path / "found" / "a" / "result.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))
    run = run_segue("export", tmp_path / "found", "coco", "-o", tmp_path / "exported")
    assert run.exit_code == 2 and told in run.stderr.replace("\n", "")


def test_a_video_without_an_object_is_told_of_for_davis(exported, tmp_path):
    told, out = exported(make_frames(tmp_path / "walk", 3), "davis", "purple")
    assert "walk: nothing was found, so that its folder is empty" in told and not any((out / "walk").iterdir())


@pytest.mark.parametrize("form", ["cvat", "label_studio"])
def test_files_of_one_name_are_told_of_where_the_name_is_all_that_a_tool_has(exported, photos, tmp_path, form):
    make_image(tmp_path / "more" / "a.png", 3)
    (tmp_path / "list.txt").write_text("photos/a.png\nmore/a.png\nphotos/b.png\n")
    told, _ = exported(tmp_path / "list.txt", form)
    assert "a.png: several files of one name, which the tool cannot tell apart" in told.replace("\n", " ")
