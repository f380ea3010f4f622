import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import warm
from pictures import BLOCK_AREA, BLOCK_HEIGHT, BLOCK_WIDTH, HEIGHT, WIDTH, make_frames, make_image
from PIL import Image
from pycocotools.coco import COCO

from segue.media import open_media
from segue.output import results
from segue.types import Finished, Region


@pytest.fixture
def photo(tmp_path) -> Path:
    return make_image(tmp_path / "street.png", shift=5)


@pytest.fixture
def walk(tmp_path) -> Path:
    return make_frames(tmp_path / "walk", 4)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder in which the second of three inputs is no picture."""
    folder = tmp_path / "mixed"
    make_image(folder / "a.png")
    (folder / "b.jpg").write_text("I am a letter, not a picture.")
    make_image(folder / "c.png", shift=9)
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def read_result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_a_line_break_in_a_name_or_phrase_breaks_no_line(run_segue, tmp_path, out):
    make_image(tmp_path / "mixed" / "a\nb.png")
    (tmp_path / "mixed" / "c\nd.jpg").write_text("no picture")
    (tmp_path / "mixed" / "e\nf.txt").write_text("a note")
    lines = run_segue("segment", tmp_path / "mixed", "bright", "no\nsuch", "-o", out).stderr.splitlines()
    assert [line.split(":")[0] for line in lines if line[0] not in " TL"] == [
        "no images or videos, left out",
        "a\\nb.png",
        "error",
        "1 done, 0 done before, 1 failed",
    ]
    assert "  no\\nsuch: not found" in lines


def test_an_image_gives_masks_overlay_scores_and_a_line(run_segue, photo, out, json_lines):
    run = run_segue("segment", photo, "bright", "dark", "-o", out)
    assert (run.exit_code, run.stdout) == (0, "")
    files = ["masks.json", "masks/00000.png", "overlay.png", "result.json"]
    assert tree(out) == ["manifest.jsonl", *(f"street/{name}" for name in files)]
    mask = Image.open(out / "street" / "masks" / "00000.png")
    assert mask.mode == "P"
    assert np.bincount(np.asarray(mask).ravel()).tolist() == [0, BLOCK_AREA, HEIGHT * WIDTH - BLOCK_AREA]
    assert open_media(out / "street" / "overlay.png").size == (HEIGHT, WIDTH)
    (record,) = json_lines((out / "manifest.jsonl").read_text())
    assert (record["source"], record["status"], record["folder"]) == (str(photo.resolve()), "ok", "street")


def test_result_json_says_what_was_found_where_and_how(run_segue, photo, out):
    run_segue("segment", photo, "bright", "purple", "-o", out, "--threshold", 0.4)
    found = read_result(out / "street")
    source = found["source"]
    assert (source["kind"], source["height"], source["width"], source["frames"]) == ("image", HEIGHT, WIDTH, 1)
    assert len(source["sha256"]) == 64
    (region,) = found["regions"]
    assert region["phrase"] == "bright" and found["text"][slice(*region["span"])] == "bright"
    assert region["box"] == [5.0, 4.0, 5.0 + BLOCK_WIDTH, 4.0 + BLOCK_HEIGHT]
    assert region["scores"] == [BLOCK_AREA / HEIGHT / WIDTH] and region["presence"] == [1.0]
    assert found["frames"] == [0]
    assert found["lineage"] == {"model": "fake", "dtype": "float32", "not_found": ["purple"]}
    assert found["settings"]["threshold"] == 0.4 and found["settings"]["phrases"] == ["bright", "purple"]


def test_a_frame_folder_is_one_video(run_segue, walk, out, capsys):
    assert run_segue("segment", walk, "bright", "-o", out).exit_code == 0
    masks = [f"walk/masks/0000{number}.png" for number in range(4)]
    assert tree(out) == ["manifest.jsonl", "walk/masks.json", *masks, "walk/overlay.mp4", "walk/result.json"]
    overlay = open_media(out / "walk" / "overlay.mp4")
    assert (overlay.count, overlay.size) == (4, (HEIGHT, WIDTH))
    assert len(read_result(out / "walk")["regions"][0]["scores"]) == 4


def test_masks_json_is_read_by_the_official_reader(run_segue, walk, out, capsys):
    run_segue("segment", walk, "bright", "white", "-o", out)
    found = COCO(str(out / "walk" / "masks.json"))
    capsys.readouterr()
    assert [category["name"] for category in found.loadCats(found.getCatIds())] == ["bright", "white"]
    assert found.getImgIds() == [0, 1, 2, 3]
    for annotation in found.loadAnns(found.getAnnIds(imgIds=[2], catIds=[2])):
        assert annotation["bbox"] == [6.0, 4.0, BLOCK_WIDTH, BLOCK_HEIGHT] and annotation["area"] == BLOCK_AREA
        assert found.annToMask(annotation)[4, 6:9].tolist() == [1, 1, 1]
        assert (annotation["object_id"], annotation["presence"]) == (2, 1.0)


def test_an_object_that_is_not_there_is_no_annotation(run_segue, tmp_path, out):
    frames = make_frames(tmp_path / "walk", 3)
    Image.new("RGB", (WIDTH, HEIGHT)).save(frames / "00001.png")
    run_segue("segment", frames, "bright", "-o", out)
    annotations = json.loads((out / "walk" / "masks.json").read_text())["annotations"]
    assert [annotation["image_id"] for annotation in annotations] == [0, 2]
    assert read_result(out / "walk")["regions"][0]["presence"] == [1.0, 0.0, 1.0]


def test_only_the_formats_asked_for_are_written(run_segue, walk, out):
    run_segue("segment", walk, "bright", "dark", "-o", out, "--formats", "logits")
    assert tree(out) == ["manifest.jsonl", "walk/logits.npz", "walk/result.json"]
    with np.load(out / "walk" / "logits.npz") as arrays:
        assert sorted(arrays) == ["index_1", "index_2", "logits_1", "logits_2"]
        assert arrays["logits_2"].shape == (4, 4, 4) and arrays["index_2"].tolist() == [0, 1, 2, 3]


def test_nothing_found_is_an_answer_too(run_segue, photo, out):
    run = run_segue("segment", photo, "purple", "-o", out)
    assert run.exit_code == 0 and "0 objects" in run.stderr
    assert read_result(out / "street")["regions"] == []


def test_the_demo_model_says_first_what_it_knows_and_other_models_do_not(run_segue, photo, out):
    assert run_segue("segment", photo, "bright", "-o", out).stderr.startswith("The demo model knows drawn scenes only")
    told = run_segue("segment", photo, "bright", "-o", out, "--model", "fake/other", "--overwrite").stderr
    assert "drawn scenes" not in told


def test_a_single_pixel_is_an_image(run_segue, tmp_path, out):
    Image.new("RGB", (1, 1), "white").save(tmp_path / "dot.png")
    assert run_segue("segment", tmp_path / "dot.png", "bright", "-o", out).exit_code == 0
    assert read_result(out / "dot")["regions"][0]["box"] == [0, 0, 1, 1]


def test_one_bad_input_is_reported_and_the_rest_is_done(run_segue, mixed, out, json_lines):
    run = run_segue("segment", mixed, "bright", "-o", out)
    assert run.exit_code == 2
    assert run.stderr.count("error: ") == 1 and "2 done, 0 done before, 1 failed" in run.stderr
    records = json_lines((out / "manifest.jsonl").read_text())
    assert [(Path(record["source"]).name, record["status"], record["folder"]) for record in records] == [
        ("a.png", "ok", "a"),
        ("b.jpg", "failed", None),
        ("c.png", "ok", "c"),
    ]
    assert "b.jpg" in records[1]["error"]
    assert {path.name for path in out.iterdir()} == {"manifest.jsonl", "a", "c"}


@pytest.mark.parametrize("name", ["cut.mp4", "letter.mp4", "gone.mp4"])
def test_a_bad_video_fails_alone_and_without_loading_a_model(run_segue, fake, tmp_path, out, name):
    (tmp_path / "letter.mp4").write_text("Dear reader")
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isommp42\0\0\xff\xffmoov")
    (tmp_path / "list.txt").write_text(f"{name}\n")
    run = run_segue("segment", tmp_path / "list.txt", "bright", "-o", out)
    assert run.exit_code == 2 and fake.Engine.loads == 0
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1 and name in run.stderr
    assert tree(out) == ["manifest.jsonl"]


def test_a_frame_that_breaks_midway_leaves_nothing_half_written(run_segue, walk, out):
    (walk / "00002.png").write_bytes((walk / "00002.png").read_bytes()[:60])
    run = run_segue("segment", walk, "bright", "-o", out)
    assert run.exit_code == 2 and "00002.png" in run.stderr
    assert tree(out) == ["manifest.jsonl"]


def test_what_the_engine_refuses_is_this_inputs_failure(run_segue, photo, out):
    run = run_segue("segment", photo, "impossible", "-o", out)
    assert run.exit_code == 2
    first, told = run.stderr.splitlines()
    assert first.startswith("The demo model knows drawn scenes only")
    assert told == "error: street.png: the phrase 'impossible' cannot be asked; ask for something else"


def test_a_model_that_does_not_load_ends_the_run(run_segue, mixed, out):
    run = run_segue("segment", mixed, "bright", "-o", out, "--model", "fake/broken")
    assert run.exit_code == 2 and run.stderr.startswith("error: broken lacks the tensor")
    assert tree(out) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("gone.png", "bright"), "gone.png does not exist"),
        (("street.png", "other.png", "bright"), "the phrase 'other.png' is a file"),
        (("street.png", " "), "a phrase is empty"),
        (("street.png", "bright", "--formats", "png,gif"), "unknown output format gif"),
        (("street.png", "bright", "--frames", "every:2"), "unknown frame plan"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(run_segue, photo, out, monkeypatch, arguments, text):
    make_image(photo.parent / "other.png")
    monkeypatch.chdir(photo.parent)
    run = run_segue("segment", *arguments, "-o", out)
    assert run.exit_code == 2 and run.stderr.startswith("error: ") and text in run.stderr
    assert not out.exists()


def test_finished_inputs_are_left_alone_and_cost_no_model(run_segue, fake, mixed, out, json_lines):
    (mixed / "b.jpg").unlink()
    run_segue("segment", mixed, "bright", "-o", out)
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    run = run_segue("segment", mixed, "bright", "-o", out, "--json")
    assert [record["skipped"] for record in json_lines(run.stdout)] == [True, True]
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before
    assert fake.Engine.loads == 1


@pytest.mark.parametrize(
    ("arguments", "done_again"),
    [
        (("bright",), False),
        (("bright", "--limit", 5), False),
        (("bright", "--device", "cpu"), False),
        (("bright", "--max-tiles", 3, "--overwrite"), True),
        (("bright", "--dtype", "fp32", "--overwrite"), True),
        (("bright", "--offload"), False),
        (("bright", "--overwrite"), True),
    ],
)
def test_an_input_is_done_again_where_that_is_asked_for(run_segue, photo, out, arguments, done_again):
    run_segue("segment", photo, "bright", "-o", out)
    run = run_segue("segment", photo, *arguments, "-o", out, "--json")
    assert run.exit_code == 0 and json.loads(run.stdout)["skipped"] is not done_again
    assert [region["phrase"] for region in read_result(out / "street")["regions"]] == [arguments[0]]


def test_what_somebody_put_beside_a_result_stays_when_it_is_made_anew(run_segue, photo, out):
    run_segue("segment", photo, "bright", "-o", out)
    folder = next(path.parent for path in out.glob("*/result.json"))
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("seen")
    (folder / "link").symlink_to("nowhere")
    before = (folder / "result.json").stat().st_ino
    assert run_segue("segment", photo, "bright", "-o", out, "--overwrite").exit_code == 0
    assert (folder / "result.json").stat().st_ino != before
    assert (folder / "notes" / "mine.txt").read_text() == "seen" and (folder / "link").is_symlink()


@pytest.mark.parametrize("change", [("--max-tiles", 3), ("--formats", "png"), ("--dtype", "fp32"), ("--reprompt", 0.2)])
def test_the_same_question_under_other_settings_asks_for_overwrite(run_segue, photo, out, change):
    run_segue("segment", photo, "bright", "-o", out)
    before = (out / "street" / "result.json").read_bytes()
    run = run_segue("segment", photo, "bright", *change, "-o", out)
    assert run.exit_code == 2 and "--overwrite" in run.stderr and change[0][2:].replace("-", "_") in run.stderr
    assert (out / "street" / "result.json").read_bytes() == before


def test_results_of_other_phrases_are_kept_beside_each_other(run_segue, photo, out, json_lines):
    for phrase in ("bright", "dark", "bright", "the dark!"):
        assert run_segue("segment", photo, phrase, "-o", out).exit_code == 0
    assert {path.name for path in out.iterdir()} == {"manifest.jsonl", "street", "street-dark", "street-the-dark"}
    records = json_lines((out / "manifest.jsonl").read_text())
    assert [record["phrases"] for record in records] == [["bright"], ["dark"], ["the dark!"]]
    assert json.loads(run_segue("segment", photo, "dark", "-o", out, "--json").stdout)["skipped"]


def test_objects_that_overlap_lose_no_pixel(run_segue, photo, out):
    run = run_segue("segment", photo, "bright", "white", "-o", out)
    assert run.exit_code == 0
    found = read_result(out / "street")
    assert (found["mask_files"], found["overlapping_frames"]) == ("masks/object_{id}/{frame:05d}.png", [0])
    for region in found["regions"]:
        mask = np.asarray(Image.open(out / "street" / found["mask_files"].format(id=region["id"], frame=0)))
        assert np.count_nonzero(mask) == region["area"] > 0
    assert not list((out / "street" / "masks").glob("*.png"))


def test_every_thing_asked_for_has_a_line(run_segue, photo, out):
    run = run_segue("segment", photo, "bright", "purple", "-o", out)
    assert (
        f"  bright: score {BLOCK_AREA / HEIGHT / WIDTH:.2f}, {BLOCK_AREA / HEIGHT / WIDTH:.1%} of the picture"
        in run.stderr
    )
    assert "  purple: not found" in run.stderr
    assert read_result(out / "street")["not_found"] == ["purple"]


def test_a_place_that_is_said_in_words_has_a_line_of_its_own(run_segue, fake, photo, out, monkeypatch, json_lines):
    original = fake.Engine._answer

    def with_place(*arguments):
        for event in original(*arguments):
            if isinstance(event, Finished):
                regions = (*event.answer.regions, Region("car", box=np.array([1.0, 2.0, 30.0, 40.0])))
                event = Finished(replace(event.answer, regions=regions))
            yield event

    monkeypatch.setattr(fake.Engine, "_answer", with_place)
    run = run_segue("segment", photo, "bright", "-o", out)
    assert "street.png: 1 object in" in run.stderr
    assert "  car: said to be at [1.0, 2.0, 30.0, 40.0], without a mask" in run.stderr


def test_an_object_without_pixels_is_not_found(run_segue, tmp_path, out):
    path = tmp_path / "black.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    run = run_segue("segment", path, "bright", "-o", out)
    assert "0 objects" in run.stderr and "bright: not found" in run.stderr
    (region,) = read_result(out / "black")["regions"]
    assert (region["is_found"], region["area"]) == (False, 0)


@pytest.mark.parametrize(
    ("change", "done_again"),
    [
        (lambda photo, result: os.utime(photo, (1, 1)), False),
        (lambda photo, result: make_image(photo, shift=20), True),
        (lambda photo, result: (result / "result.json").unlink(), True),
        (lambda photo, result: (result / "result.json").write_text("{"), True),
    ],
    ids=["touched", "other content", "result gone", "result damaged"],
)
def test_an_input_is_done_again_where_content_or_result_changed(run_segue, photo, out, change, done_again):
    run_segue("segment", photo, "bright", "-o", out)
    change(photo, out / "street")
    run = run_segue("segment", photo, "bright", "-o", out, "--json")
    assert json.loads(run.stdout)["skipped"] is not done_again
    assert len(list(out.iterdir())) == 2


def test_a_model_folder_whose_files_changed_is_another_model(run_segue, photo, out, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    arguments = ("segment", photo, "bright", "-o", out, "--model", model, "--json")
    skipped = [json.loads(run_segue(*arguments).stdout)["skipped"] for _ in range(2)]
    (model / "config.json").write_text('{"changed": true}')
    assert skipped == [False, True]
    assert "--overwrite" in json.loads(run_segue(*arguments).stdout)["error"]


def test_a_failed_input_is_tried_again(run_segue, mixed, out, json_lines):
    run_segue("segment", mixed, "bright", "-o", out)
    make_image(mixed / "b.jpg")
    run = run_segue("segment", mixed, "bright", "-o", out)
    assert run.exit_code == 0 and "1 done, 2 done before, 0 failed" in run.stderr
    records = json_lines((out / "manifest.jsonl").read_text())
    assert [Path(record["source"]).name for record in records] == ["a.png", "b.jpg", "c.png"]


def test_a_failure_keeps_the_older_result_and_it_can_be_used_again(run_segue, photo, out, json_lines):
    run_segue("segment", photo, "bright", "-o", out)
    whole = photo.read_bytes()
    photo.write_bytes(whole[:80])
    run_segue("segment", photo, "bright", "-o", out)
    (record,) = json_lines((out / "manifest.jsonl").read_text())
    assert (record["status"], record["folder"]) == ("failed", "street")
    photo.write_bytes(whole)
    assert "0 done, 1 done before" in run_segue("segment", photo, "bright", "-o", out).stderr


def test_a_folder_that_is_not_ours_is_never_replaced(run_segue, photo, out):
    (out / "street").mkdir(parents=True)
    (out / "street" / "diary.txt").write_text("mine")
    run_segue("segment", photo, "bright", "-o", out)
    assert (out / "street" / "diary.txt").read_text() == "mine"
    assert sum(path.name.startswith("street-") for path in out.iterdir()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux alone")
def test_a_file_name_that_is_no_text_comes_back_from_the_manifest(run_segue, photo, out, json_lines):
    odd = photo.rename(os.fsdecode(os.fsencode(photo.parent) + b"/caf\xe9.png"))
    for skipped in (False, True):
        run = run_segue("segment", odd, "bright", "-o", out, "--json")
        (record,) = json_lines(run.stdout)
        assert (record["source"], record["skipped"]) == (str(odd), skipped)


def test_json_is_one_object_per_input_on_stdout(run_segue, mixed, out, json_lines):
    run = run_segue("segment", mixed, "bright", "-o", out, "--json", "--limit", 2)
    done, failed = json_lines(run.stdout)
    assert (done["status"], done["folder"], done["skipped"]) == ("ok", "a", False)
    (region,) = done["regions"]
    assert region["phrase"] == "bright" and region["box"] == [0, 4, 12, 12]
    assert region["score"] == region["share"] == BLOCK_AREA / HEIGHT / WIDTH and region["area"] == BLOCK_AREA
    assert failed["status"] == "failed" and "b.jpg" in failed["error"]


def test_ctrl_c_keeps_what_is_finished(run_segue, fake, mixed, out, monkeypatch):
    calls = iter([None, KeyboardInterrupt()])
    original = fake.Engine.stream_segment

    def interrupted(self, *arguments):
        if (error := next(calls)) is not None:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(fake.Engine, "stream_segment", interrupted)
    run = run_segue("segment", mixed, "bright", "-o", out)
    assert run.exit_code == 130 and run.stderr.endswith("interrupted\n") and "Traceback" not in run.stderr
    assert {path.name for path in out.iterdir()} == {"manifest.jsonl", "a"}
    monkeypatch.undo()


def test_a_bug_stops_the_run_and_leaves_nothing_half_written(run_segue, fake, photo, out, monkeypatch):
    monkeypatch.setattr(fake.Engine, "_answer", lambda *arguments: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        run_segue("segment", photo, "bright", "-o", out)
    assert tree(out) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(run_segue, mixed, out, monkeypatch):
    written = iter(range(100))

    def full(path: Path, *arguments: object) -> None:
        path.write_bytes(b"half")
        if next(written) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "write_mask_png", full)
    run = run_segue("segment", mixed, "bright", "-o", out)
    assert run.exit_code == 2 and "the disk is full" in run.stderr.splitlines()[-1]
    assert {path.name for path in out.iterdir()} == {"manifest.jsonl", "a"}


def killed_runs(tmp_path: Path, first: int, step: int) -> list[int]:
    """How often a run was killed and went on to the same end: in folders of its own, and in one and the same."""
    make_frames(tmp_path / "mixed" / "walk")
    script = Path(__file__).with_name("killed_runs.py")
    run = warm.run(script, tmp_path / "mixed", tmp_path / "runs", first, step)
    assert run.returncode == 0, run.stderr
    return [int(word) for word in run.stdout.split()]


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(mixed, tmp_path):
    apart, together = killed_runs(tmp_path, first=5, step=23)
    assert apart >= 2 and together >= 1


@pytest.mark.slow
def test_a_run_may_be_killed_at_any_step(mixed, tmp_path):
    apart, together = killed_runs(tmp_path, first=1, step=1)
    assert apart >= 50 and together >= 30


def test_how_a_model_is_loaded_is_said_to_the_loader_and_what_changes_numbers_is_kept(
    run_segue, fake, photo, out, tmp_path, monkeypatch
):
    told = {}
    monkeypatch.setattr(fake, "load", lambda model, **choices: told.update(choices) or fake.Engine())
    sam2 = tmp_path / "sam2.pt"
    sam2.write_bytes(b"weights")
    words = ("--sam2", sam2, "--quantize", "int8", "--ignore-memory", "--reprompt", "0.3")
    assert run_segue("segment", photo, "bright", "-o", out, *words).exit_code == 0
    assert told == {
        "device": "auto",
        "dtype": "auto",
        "sam2": str(sam2),
        "quantize": "int8",
        "quantize_kv": False,
        "offload": False,
        "check_memory": False,
    }
    (result,) = out.glob("*/result.json")
    settings = json.loads(result.read_text())["settings"]
    assert (settings["quantize"], settings["reprompt"]) == ("int8", 0.3) and settings["sam2"]["name"] == str(sam2)


def test_what_a_folder_holds_beside_images_is_listed_with_its_reason(run_segue, tmp_path, out):
    folder = tmp_path / "mine"
    make_image(folder / "a.png")
    make_image(folder / "b.png").rename(folder / "b")  # a name without an ending
    (folder / "c.jp2").write_bytes(b"\0\0\0\x0cjP  ")
    (folder / "notes.txt").write_text("of this folder")
    os.mkfifo(folder / "d.png")
    run = run_segue("segment", folder, "bright", "-o", out)
    assert run.exit_code == 2
    assert "c.jp2 is left out: its ending .jp2" in run.stderr and "left out: notes.txt" in run.stderr
    assert "d.png" in run.stderr and "pipe" in run.stderr
    assert {path.name for path in out.iterdir()} == {"manifest.jsonl", "a", "b"}
    assert run_segue("segment", folder, "bright", "-o", out, "--skip-bad").exit_code == 0


def test_a_deep_picture_says_its_window_and_takes_another(run_segue, tmp_path, out):
    values = np.linspace(0, 3810, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / "deep.png")
    run = run_segue("segment", tmp_path / "deep.png", "bright", "-o", out)
    assert "note: windowed 0 to 3,810" in run.stderr
    source = read_result(out / "deep")["source"]
    assert (source["window"], source["notes"]) == ([0, 3810], ["windowed 0 to 3,810"])
    run = run_segue("segment", tmp_path / "deep.png", "bright", "-o", out, "--window", "0,4095", "--overwrite")
    assert "windowed 0 to 4,095" in run.stderr
    assert run_segue("segment", tmp_path / "deep.png", "bright", "-o", out, "--window", "9").exit_code == 2


def test_an_animation_is_a_clip_or_its_first_picture(run_segue, tmp_path, out):
    first, second = (Image.new("RGB", (WIDTH, HEIGHT), (grey,) * 3) for grey in (200, 250))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert run_segue("segment", tmp_path / "a.gif", "bright", "-o", out).exit_code == 0
    assert read_result(out / "a")["frames"] == [0, 1]
    run = run_segue("segment", tmp_path / "a.gif", "bright", "-o", out / "b", "--as", "images")
    assert "the first of 2 frames" in run.stderr and read_result(out / "b" / "a")["frames"] == [0]


def test_what_is_piped_in_is_an_input(run_segue, photo, out, json_lines, monkeypatch):
    monkeypatch.setattr("segue.cli.options.read_piped", photo.read_bytes)
    (record,) = json_lines(run_segue("segment", "-", "bright", "-o", out, "--json").stdout)
    assert record["status"] == "ok" and record["folder"].startswith("stdin-")
