"""The data doctor finds what is wrong in all rows, says it by kind, and mends a copy; what it passes loads."""

import json
import shutil

import layouts
import numpy as np
import pytest
import test_malformed
from layouts import SQUARE, box_mask, rle

from segue.data.base import rng_for
from segue.errors import ConfigError, DataError, MediaError, SegueError
from segue.media import open_media, read_image
from segue.output.export import OverlayWriter
from segue.own_data import folder
from segue.own_data.doctor import KINDS, examine, overlays, repair
from segue.own_data.doctor.fixes import clipped
from segue.own_data.doctor.rows import lost_share
from segue.own_data.recognition import NotRecognisedError

FINE = {"mask": [[SQUARE]], "text": ["cup"]}


def circle(x, y, radius):
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).ravel().tolist()


@pytest.fixture
def data(tmp_path):
    """Writes my folder; items need only say what is special, and images are told apart by their number."""

    def write(*items, size=layouts.SIZE, same=()):
        whole = [{"image": f"{number}.png", **FINE, **item} for number, item in enumerate(items)]
        for number, item in enumerate(whole):
            layouts.write_image(tmp_path / "my/images" / item["image"], size, seed=0 if number in same else number + 1)
        layouts.write_json(tmp_path / "my/annotations.json", whole)
        return tmp_path / "my"

    return write


def found(root, **options):
    """Row, object and value by kind, of kinds other than that there are few groups."""
    kinds = examine(root, **options).report.by_kind()
    kinds.pop("few_groups", None)
    return {kind: [(finding.row, finding.object) for finding in findings] for kind, findings in kinds.items()}


def mended(root, tmp_path, **options):
    """The samples of the corrected copy by name, and what the notes say."""
    repair.write(examine(root, **options), tmp_path / "mended")
    rows = folder.load(tmp_path / "mended", "all")
    samples = [rows.get(row, rng_for(0, 0, 0)) for row in range(len(rows))]
    notes = [json.loads(line)["done"] for line in (tmp_path / "mended/repairs.jsonl").read_text().splitlines()]
    return samples, notes


def areas(sample):
    return {region.phrase: int(region.masks.dense(0).sum()) for region in sample.regions}


# --- one row


@pytest.mark.parametrize(
    ("item", "kind", "place"),
    [
        ({"mask": [[SQUARE], [[5, 5]]], "text": ["a", "b"]}, "few_points", 1),
        ({"mask": [[[1, 1, 9, 1, 9]]]}, "few_points", 0),
        ({"mask": [[[1, 1, 9, 1, float("nan"), 9]]]}, "bad_coordinate", 0),
        ({"mask": [[[1, 1, 9, 1, float("inf"), 9]]]}, "bad_coordinate", 0),
        ({"mask": [[["x", 1, 9, 1, 9, 9]]]}, "bad_coordinate", 0),
        ({"mask": [[[1, 1, 1, 1, 1, 1]]]}, "empty_mask", 0),
        ({"mask": [rle(box_mask(0, 0, 0, 0))]}, "empty_mask", 0),
        ({"mask": [rle(box_mask(0, 0, 5, 5, size=(20, 30)))]}, "other_size", 0),
        ({"mask": [{"size": [40, 60], "counts": "@@@"}]}, "bad_mask", 0),
        ({"mask": ["nowhere.png"]}, "missing_file", 0),
        ({"text": ["  "]}, "no_text", 0),
        ({"text": [7]}, "no_text", 0),
        ({"mask": [[SQUARE]] * 2}, "count_mismatch", None),
        ({"mask": [], "text": []}, "no_object", None),
        ({"mask": [], "text": ["cup"]}, "count_mismatch", None),
    ],
)
def test_what_is_wrong_with_a_row_is_told_by_kind_and_object(data, item, kind, place):
    root = data({}, item, {})
    assert found(root) == {kind: [(1, place)]}
    assert KINDS[kind].severity == "error"
    with pytest.raises(SegueError):
        folder.load(root, "all").get(1, rng_for(0, 0, 0))


def test_nothing_stops_the_doctor_and_every_fault_of_an_object_is_told(data):
    root = data(
        {"mask": [[[5, 5], [1, 1, float("nan"), 1, 9, 9], SQUARE], [[2, 2]]], "text": ["a", "b"]},
        {"image": "gone.png"},
        {"split": "someday"},
        {"mask": []},
    )
    (root / "images/gone.png").unlink()
    assert found(root) == {
        "refused": [(None, None)],
        "missing_file": [(1, None)],
        "few_points": [(0, 0), (0, 1)],
        "bad_coordinate": [(0, 0)],
        "count_mismatch": [(2, None)],
    }


@pytest.mark.parametrize(
    "spoil", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"text" * 9]
)
def test_an_image_that_only_looks_like_one_is_found_by_decoding_it(data, spoil):
    root = data({}, {})
    path = root / "images/1.png"
    path.write_bytes(spoil(path.read_bytes()))
    assert found(root) == {"unreadable_file": [(1, None)]}


def test_overlapping_polygons_and_negatives_are_fine(data):
    root = data({"mask": [layouts.OVERLAPPING]}, {"mask": [], "negative": True})
    assert found(root) == {}


def test_a_flat_polygon_and_objects_of_one_text_are_warnings_and_load(data):
    root = data({"mask": [SQUARE]}, {"mask": [[SQUARE], [SQUARE]], "text": ["Cup.", "cup"]})
    examined = examine(root)
    kinds = examined.report.by_kind()
    assert set(kinds) == {"flat_polygon", "same_text", "few_groups"} and examined.report.is_clean
    assert (kinds["same_text"][0].row, kinds["same_text"][0].text) == (1, "cup")


def test_a_row_whose_parts_are_sound_but_that_gives_no_sample_is_told(tmp_path):
    (tmp_path / "my/videos").mkdir(parents=True)
    with OverlayWriter(tmp_path / "my/videos/clip.mp4", 10, layouts.SIZE) as writer:
        for _ in range(3):
            writer.write(np.zeros((*layouts.SIZE, 3), np.uint8))
    layouts.write_mask(tmp_path / "my/masks/clip/00099.png", box_mask(1, 2, 9, 9).astype(np.uint8))
    assert found(tmp_path / "my", phrase="box") == {"unusable": [(0, None)]}


# --- another frame


def discs(count, size, seed=0, radius=20):
    """Items with a disc each, some of them near every edge of an image of that side."""
    rng = np.random.default_rng(seed)
    ends = [radius, size - radius]
    places = [(ends[n % 2], ends[n // 2 % 2]) if n < 4 else rng.uniform(*ends, 2) for n in range(count)]
    return [{"mask": [[circle(x, y, radius)]]} for x, y in places]


def test_annotations_of_a_larger_image_are_recognised_with_the_scale_that_mends_them(data):
    root = data(*discs(6, 128, radius=10), *discs(8, 200, radius=10), size=(128, 128))
    report = examine(root).report
    kinds = report.by_kind()
    assert set(kinds) == {"other_frame", "maybe_other_frame"}
    assert {finding.row for finding in kinds["other_frame"]} <= set(range(6, 14))
    assert len(kinds["other_frame"]) >= 3
    assert all("on 200x200: scale by 0.64" in finding.expected for finding in kinds["other_frame"])
    assert "stay inside" in kinds["maybe_other_frame"][0].value


def test_600_of_1220_annotations_in_frames_of_800_on_images_of_512():
    """The real case, without its images: what rows tell together."""
    from segue.own_data.doctor import cross_row_checks
    from segue.own_data.doctor.rows import Seen

    rng = np.random.default_rng(0)
    seen = []
    for number in range(1220):
        frame = 800 if number < 600 else 512
        low, high = np.sort(rng.uniform(5, frame - 5, (2, 2)), axis=0) / 512
        seen.append(Seen((), "", (512, 512), (low[0], low[1], high[0], high[1])))
    ((size, frame),) = cross_row_checks.frames(seen)
    assert (size, frame.size) == ((512, 512), (800, 800))
    assert set(frame.rows) <= set(range(600)) and len(frame.rows) > 450


def test_one_polygon_far_outside_is_a_slip_and_not_another_frame(data):
    far = {"mask": [[[1, 1, 500, 1, 30, 30]]]}
    assert found(data(*[{}] * 5, far)) == {"outside": [(5, 0)]}
    few = [{"mask": [[[1, 1, 66 + n, 1, 30, 30]]]} for n in range(4)]
    kinds = found(data(*few, far))
    assert kinds["outside"] == [(4, 0)] and len(kinds["other_frame"]) == 4


def test_polygons_that_stay_in_one_corner_of_all_images_are_looked_at_twice(data):
    items = discs(20, 64, radius=6)
    root = data(*items, size=(128, 128))
    report = examine(root).report
    (doubt,) = report.by_kind()["maybe_other_frame"]
    assert report.is_clean and "perhaps drawn on 6" in doubt.expected


def test_a_stated_size_is_taken_and_one_of_another_shape_is_not(data):
    twice = [2 * number for number in SQUARE]
    good, bad = {"mask": [[twice]], "size": [80, 120]}, {"mask": [[twice]], "size": [80, 200]}
    assert found(data(good, bad)) == {"bad_mask": [(1, 0)]}


def test_a_size_that_coco_states_and_the_image_has_not_is_an_error_with_its_scale(tmp_path):
    content = json.loads(json.dumps(test_malformed.COCO))
    content["images"][0] |= {"height": 80, "width": 120}
    layouts.write_json(tmp_path / "my/coco.json", content)
    layouts.write_image(tmp_path / "my/images/1.jpg")
    (finding,) = examine(tmp_path / "my").report.by_kind()["other_size"]
    assert (finding.value, finding.expected) == ("annotated at 120x80", "the image's 60x40: scale by 0.5")
    (sample,), _ = mended(tmp_path / "my", tmp_path)
    assert areas(sample) == {"cup": 100}


# --- splits


def test_a_group_in_two_splits_is_an_error_and_moves_into_one(data, tmp_path):
    splits = ["train", "train", "train", "test", "test", "val"]
    root = data(*[{"group": group, "split": split} for group, split in zip("aabacd", splits, strict=True)])
    assert found(root) == {"group_leak": [(3, None)]}
    samples, notes = mended(root, tmp_path)
    assert [note for note in notes if "moved" in note] == ["moved from test to train, where its group or image is"]
    by_split = {
        split: {sample.group for sample in folder.load(tmp_path / "mended", split).rows and samples}
        for split in ("train", "val", "test")
    }
    assert len(by_split) == 3 and found(tmp_path / "mended") == {}
    test = folder.load(tmp_path / "mended", "test")
    assert {test.get(row, rng_for(0, 0, 0)).group for row in range(len(test))} == {"c"}


def test_one_image_in_two_splits_is_an_error_and_becomes_one_row(data, tmp_path):
    root = data(
        {"split": "train"}, {"split": "test", "text": ["dish"]}, {"split": "train"}, {"split": "test"}, same=(0, 1)
    )
    assert found(root) == {"image_leak": [(1, None)]}
    samples, notes = mended(root, tmp_path)
    assert sorted(len(sample.regions) for sample in samples) == [1, 1, 2]
    assert any("the same image" in note for note in notes)


def test_images_that_would_be_dealt_into_two_splits_leak_too(data):
    root = data(*[{}] * 12, same=range(12))
    assert set(found(root)) == {"image_leak"}


def test_folders_that_are_in_several_splits_are_only_a_warning(tmp_path):
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            seed = len(split) * 10 + len(name) + ord(name[0])
            layouts.write_image(tmp_path / "my" / split / "images" / name / f"{split}.png", seed=seed)
        items = [{"image": f"{name}/{split}.png", **FINE} for name in ("cats", "dogs")]
        layouts.write_json(tmp_path / "my" / split / "annotations.json", items)
    report = examine(tmp_path / "my").report
    assert set(report.by_kind()) == {"folder_leak"} and report.is_clean
    samples, _ = mended(tmp_path / "my", tmp_path)
    assert len(samples) == 4 and found(tmp_path / "mended") == {}


def test_a_pattern_for_groups_is_used(data):
    root = data({"image": "p1_a.png", "split": "train"}, {"image": "p1_b.png", "split": "test"})
    assert found(root) == {}
    assert set(found(root, group=r"p\d+")) == {"group_leak"}


def test_two_rows_of_one_file_are_fine_while_their_words_differ(data):
    root = data({"image": "a.png"}, {"image": "a.png", "text": ["dish"]}, {"image": "a.png", "text": ["dish"]})
    assert found(root) == {"same_image": [(0, None)]}
    assert found(data({"image": "a.png"}, {"image": "a.png", "text": ["dish"]})) == {}


# --- thin masks


def test_what_is_lost_at_256_is_measured():
    line = np.zeros((512, 512), bool)
    line[:, 101] = True
    assert lost_share(line) == 1
    line[:, 100] = True
    assert lost_share(line) == 0
    assert lost_share(np.eye(200, 100, 3, dtype=bool)) == 0
    assert lost_share(np.eye(256, 90, dtype=bool)) == 0
    assert 0.1 < lost_share(np.eye(298, 256, dtype=bool)) < 0.3


def test_a_thin_mask_is_a_warning_with_its_share(data):
    thin = {"mask": [[[101, 10, 102, 10, 102, 500, 101, 500]]]}
    (finding,) = examine(data(thin, size=(512, 512))).report.by_kind()["thin_mask"]
    assert (finding.severity, finding.value) == ("warning", "all of it lost")


# --- mending


def test_a_mended_copy_has_no_error_and_says_what_was_done(data, tmp_path):
    root = data(
        {"mask": [[SQUARE, [5, 5]], [[9, 9]]], "text": ["cup", "dish"]},
        {"mask": [SQUARE]},
        {"mask": [[SQUARE], [layouts.OVERLAPPING[1]]], "text": ["cup", "cup"]},
        {"mask": [[[50, 10, 90, 10, 90, 30, 50, 30]]]},
        {"mask": [[SQUARE], [layouts.OVERLAPPING[1]]], "text": ["cup"]},
        {"mask": []},
        {"mask": [], "text": ["dog"], "negative": True},
        {"mask": [rle(box_mask(0, 0, 10, 10, size=(20, 30)))]},
    )
    before = sorted((path, path.read_bytes()) for path in root.rglob("*") if path.is_file())
    samples, notes = mended(root, tmp_path)
    assert [areas(sample) for sample in samples] == [
        {"cup": 400},
        {"cup": 400},
        {"cup": layouts.UNION},
        {"cup": 10 * 20},
        {"cup": layouts.UNION},
        {},
        {"cup": 400},
    ]
    assert any(note.startswith("dropped the row: there are 0 masks") for note in notes)
    assert any(note.startswith("dropped the object") for note in notes)
    assert any("cut 1 of 1 polygons to the image" in note for note in notes)
    assert sorted((path, path.read_bytes()) for path in root.rglob("*") if path.is_file()) == before


def test_a_copy_scales_what_was_drawn_on_another_image(data, tmp_path):
    root = data(*[{"mask": [[circle(x, 40, 20)]]} for x in (30, 110, 140, 180)], size=(100, 100))
    frame = examine(root).report.by_kind()["other_frame"][0]
    factor = float(frame.expected.rpartition(" ")[2])
    samples, _ = mended(root, tmp_path)
    for sample, x in zip(samples[1:], (110, 140, 180), strict=True):
        left, top, right, bottom = sample.regions[0].box
        assert abs((left + right) / 2 - factor * x) < 1 and abs((top + bottom) / 2 - factor * 40) < 1
    assert found(tmp_path / "mended") == {}


def test_a_video_becomes_its_annotated_frames(tmp_path):
    layouts.write_frames(tmp_path / "my/videos/clip", 4)
    for number in (1, 3):
        layouts.write_mask(tmp_path / f"my/masks/clip/0000{number}.png", box_mask(number, 2, 9, 9).astype(np.uint8))
    assert found(tmp_path / "my", phrase="box") == {}
    samples, _ = mended(tmp_path / "my", tmp_path, phrase="box")
    assert [sample.regions[0].box[0] for sample in samples] == [1, 3]
    assert {sample.group for sample in samples} == {"clip"}


def test_a_track_of_cvat_is_mended_frame_by_frame(tmp_path):
    shapes = (
        '<polygon frame="0" outside="0" points="10,5;30,5;30,25;10,25"/><polygon frame="1" outside="0" points="1,2"/>'
    )
    size = "<original_size><width>60</width><height>40</height></original_size>"
    text = f'<annotations><meta>{size}<source>clip</source></meta><track label="cup">{shapes}</track></annotations>'
    layouts.write_frames(tmp_path / "my/videos/clip", 3)
    (tmp_path / "my/cvat.xml").write_text(text)
    assert found(tmp_path / "my") == {"few_points": [(0, 1)]}
    (sample,), notes = mended(tmp_path / "my", tmp_path)
    assert areas(sample) == {"cup": 400} and len(notes) == 1


def test_a_copy_is_whole_or_not_there_and_replaces_nothing_unasked(data, tmp_path):
    examined = examine(data({"mask": [[[5, 5]]]}))
    with pytest.raises(DataError, match="nothing is left"):
        repair.write(examined, tmp_path / "mended")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my"]
    (tmp_path / "mended").mkdir()
    with pytest.raises(MediaError, match="there already"):
        repair.write(examined, tmp_path / "mended")


@pytest.mark.parametrize(
    ("polygon", "area"),
    [
        ([[-5, -5], [5, -5], [5, 5], [-5, 5]], 25),
        ([[2, 2], [4, 2], [4, 4], [2, 4]], 4),
        ([[-9, 2], [-2, 2], [-2, 8]], 0),
        ([[-10, -10], [20, -10], [20, 20], [-10, 20]], 60),
    ],
)
def test_polygons_are_cut_at_the_edges_of_their_image(polygon, area):
    points = clipped(np.asarray(polygon, np.float64), (6, 10))
    x, y = points[:, 0], points[:, 1]
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == area


# --- pictures


def test_pictures_show_the_mask_and_the_words(data, tmp_path):
    root = data({"mask": [[SQUARE], [SQUARE]], "text": ["cup", "cup"]}, {"mask": [[[5, 5]]]}, *[{"mask": []}] * 3)
    written = overlays.write(examine(root), tmp_path / "out", examples=2)
    names = sorted(path.name for path in written)
    assert names == [
        "count_mismatch-1.png",
        "count_mismatch-2.png",
        "few_points-1.png",
        "findings.jsonl",
        "same_text-1.png",
    ]
    pixels = read_image(open_media(tmp_path / "out/pictures/same_text-1.png"))
    assert pixels.shape[1] >= 480 and pixels.shape[0] > 8 * layouts.SIZE[0]
    lines = [json.loads(line) for line in (tmp_path / "out/findings.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} >= {"same_text", "few_points"}
    assert all(line["advice"] and line["severity"] in ("error", "warning") for line in lines)
    shutil.rmtree(root / "images")
    assert overlays.write(examine(root), tmp_path / "out", examples=2) == [tmp_path / "out/findings.jsonl"]
    assert list((tmp_path / "out/pictures").iterdir()) == []


def test_a_picture_grows_for_what_lies_outside_but_not_without_end(data):
    examined = examine(data({"mask": [[[1, 1, 5000, 1, 30, 30]]]}))
    (finding,) = [one for one in examined.report.findings if one.kind == "other_frame"]
    picture = overlays.picture_of(finding, examined.survey.rows[0], None)
    assert picture.shape[1] <= 2 * 60 * 8


# --- the promise: what passes loads, what is an error fails or misleads, and the copy is clean


def judged(root):
    """Whether the doctor passes a folder, and whether all of it loads."""
    try:
        examined = examine(root)
    except SegueError:
        examined = None
    try:
        rows = folder.load(root, "all")
        for row in range(len(rows)):
            rows.get(row, rng_for(0, 0, 0))
        loads = len(rows) > 0
    except SegueError:
        loads = False
    return examined, loads


@pytest.mark.parametrize("content", [test_malformed.COCO, test_malformed.FINETUNE, test_malformed.STUDIO])
def test_whatever_stands_in_the_place_of_a_part_the_doctor_and_the_loader_agree(tmp_path, content):
    path = layouts.write_json(tmp_path / "my/data.json", content)
    layouts.write_image(tmp_path / "my/images/1.jpg")
    # of a list, its first two parts stand for all
    for place in [
        place for place in test_malformed.places(content) if len(place) < 8 and not set(place) & {*range(2, 99)}
    ]:
        for value in (None, "x", [[1]]):
            path.write_text(json.dumps(test_malformed.changed(content, place, value)))
            examined, loads = judged(tmp_path / "my")
            assert (examined is not None and examined.report.is_clean) == loads, (place, value)
            if examined is None:
                continue
            overlays.write(examined, tmp_path / "out", examples=1)
            try:
                repair.write(examined, tmp_path / "mended", overwrite=True)
            except DataError as error:
                assert "nothing is left" in str(error), (place, value)  # noqa: PT017


def test_what_passes_loads_split_by_split(data):
    root = data(*[{"split": split} for split in ("train", "train", "val", "test")])
    report = examine(root).report
    assert report.is_clean and report.splits == {"train": 2, "val": 1, "test": 1}
    for split, count in report.splits.items():
        rows = folder.load(root, split)
        assert len(rows) == count
        assert all(rows.get(row, rng_for(0, 0, row)).regions for row in range(count))


def test_images_without_any_mask_are_left_out_and_all_of_them_is_an_error(tmp_path):
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 60} for number in range(3)]
    for number in range(3):
        layouts.write_image(tmp_path / f"images/{number}.jpg", seed=number)
    some = {**test_malformed.COCO, "images": images}
    layouts.write_json(tmp_path / "coco.json", some)
    report = examine(tmp_path).report
    assert report.is_clean and len(report.by_kind()["left_out"]) == 2
    layouts.write_json(tmp_path / "coco.json", {**some, "annotations": []})
    report = examine(tmp_path).report
    assert not report.is_clean and len(report.by_kind()["left_out"]) == 3


def test_a_folder_that_is_none_of_ours_is_told(tmp_path):
    with pytest.raises(NotRecognisedError, match="no annotations of a known form"):
        examine(tmp_path)
    (tmp_path / "masks").mkdir()
    layouts.write_image(tmp_path / "images/a.png")
    layouts.write_mask(tmp_path / "masks/a.png", box_mask(1, 1, 4, 4).astype(np.uint8))
    with pytest.raises(ConfigError, match="phrase"):
        examine(tmp_path)
