"""`segue segment s3://...`: what lies in a store gives what lies on a disk, and is on the disk only meanwhile."""

import re
import sys
from pathlib import Path

import fake_store
import pytest
import warm
from pictures import content, make_frames, make_image

from segue.cli.segment import run
from segue.errors import MediaError, SegueError
from segue.jobs import inputs, stored
from segue.jobs.run import BatchJob
from segue.jobs.stored import Stored
from segue.media.limits import Limits

URL = "s3://bucket/photos"


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Four pictures and a letter in a store, in this folder."""
    monkeypatch.setenv("FAKE_STORE", str(tmp_path / "store"))
    folder = tmp_path / "store" / "bucket" / "photos"
    for number in (1, 2, 7, 10):
        make_image(folder / f"{number}.png", shift=number)
    (folder / "5.jpg").write_text("I am a letter, not a picture.")
    return folder


def job(out):
    return BatchJob(out=out, formats=("png", "coco", "overlay"), settings={"phrases": ["bright"]})


def written(out: Path, place: object) -> str:
    """All that a run has written, but for where its inputs lie and their stamps."""
    assert not list(out.glob(".*")), "nothing is left about"
    return re.sub(r"'stamp': '[^']*'", "", repr(content(out))).replace(str(place), "")


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_and_files_are_those_of_a_folder_on_the_disk(photos, tmp_path, workers):
    run(inputs.find(str(photos)), job(tmp_path / "disk"), fake_store.load)
    tally = run(inputs.find(URL), job(tmp_path / "stored"), fake_store.load, workers)
    assert (tally.done, tally.failed) == (4, 1)
    assert written(tmp_path / "stored", URL) == written(tmp_path / "disk", photos)


def test_shards_of_a_pattern_are_one_run_over_the_disk(run_segue, photos, tmp_path):
    run_segue("segment", photos, "bright", "-o", tmp_path / "disk")
    for number in (1, 0):
        last = run_segue("segment", f"{URL}/*.[jp]*", "bright", "-o", tmp_path / "out", "--shard", f"{number}/2")
    assert "5 inputs listed, none missing, none twice" in last.stderr
    assert written(tmp_path / "out", URL) == written(tmp_path / "disk", photos)


def test_a_list_names_files_and_folders_and_what_is_missing_is_one_failed_row(run_segue, photos, tmp_path, json_lines):
    make_image(tmp_path / "here.png")
    make_image(photos.parent / "more" / "a.png")
    (tmp_path / "list.txt").write_text(f"{URL}/7.png\nhere.png\n{URL}/gone.png\ns3://bucket/more/\ns3://bucket/more\n")
    result = run_segue("segment", tmp_path / "list.txt", "bright", "-o", tmp_path / "out", "--json")
    rows = {row["source"]: row["error"] for row in json_lines(result.stdout)}
    assert list(rows) == [
        f"{URL}/7.png",
        str(tmp_path / "here.png"),
        f"{URL}/gone.png",
        "s3://bucket/more/a.png",
        "s3://bucket/more",
    ]
    assert [error for error in rows.values() if error] == [
        f"{URL}/gone.png does not exist",
        "s3://bucket/more is a folder; in a list it ends with /",
    ]
    assert result.exit_code == 2 and "3 done, 0 done before, 2 failed" in result.stderr


def test_a_run_goes_on_and_does_what_has_changed_again(run_segue, photos, tmp_path):
    def segment():
        return run_segue("segment", URL, "bright", "-o", tmp_path / "out").stderr

    segment()
    assert "0 done, 4 done before, 1 failed" in segment()
    make_image(photos / "7.png", shift=1)
    make_image(photos / "5.jpg")
    assert "2 done, 3 done before, 0 failed" in segment()


def test_one_is_fetched_as_its_turn_comes(photos, tmp_path):
    held = []

    def load():
        segment = fake_store.load()

        def seen(media):
            held.append([path.name for path in tmp_path.glob("out/.segue-*/*")])
            return segment(media)

        return seen

    run(inputs.find(URL), job(tmp_path / "out"), load)
    assert held == [["1.png"], ["2.png"], ["7.png"], ["10.png"]]


def test_the_copy_that_a_killed_run_leaves_is_gone_after_the_next(photos, tmp_path):
    out = tmp_path / "out"
    run(inputs.find(f"{URL}/1.png"), job(out), fake_store.load)
    left = Stored(f"{URL}/7.png").place(out)
    left.parent.mkdir()
    left.write_text("half of it")
    run(inputs.find(URL), job(out), fake_store.load)
    assert not left.parent.exists()


@pytest.mark.slow
def test_a_run_may_be_killed_at_any_step(photos, tmp_path):
    done = warm.run(Path(__file__).with_name("killed_runs.py"), URL, tmp_path / "runs", 1, 3)
    assert done.returncode == 0, done.stderr
    apart, together = map(int, done.stdout.split())
    assert apart >= 30 and together >= 15


def test_what_is_too_large_is_not_fetched(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "DEFAULT_LIMITS", Limits(file_bytes=10))
    monkeypatch.setattr(fake_store.Store, "open", None)
    with (
        pytest.raises(SegueError, match="7.png has .* bytes; at most 10 are allowed"),
        Stored(f"{URL}/7.png").copied(tmp_path / "part" / "7.png"),
    ):
        pass


@pytest.mark.parametrize("size", [10, 10_000])
def test_what_has_another_size_than_the_store_says_is_refused_and_removed(photos, tmp_path, monkeypatch, size):
    facts = fake_store.Store.info
    monkeypatch.setattr(fake_store.Store, "info", lambda *given: {**facts(*given), "size": size})
    with (
        pytest.raises(MediaError, match="changed, or was cut off"),
        Stored(f"{URL}/7.png").copied(tmp_path / "part" / "7.png"),
    ):
        pass
    assert not (tmp_path / "part").exists()


def test_without_the_stores_package_it_is_said_what_to_install(run_segue, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    (tmp_path / "list.txt").write_text("gs://bucket/a.png\n")
    for given in ("gs://bucket/a.png", tmp_path / "list.txt"):
        result = run_segue("segment", given, "bright", "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert "gs://bucket/a.png is read by gcsfs, which is missing: pip install gcsfs" in result.stderr


@pytest.mark.parametrize(
    "given",
    [
        "https://example.org/a.png",
        "file:///etc/passwd",
        "memory://a.png",
        "simplecache::s3://bucket/a.png",
        "s3://bucket/a.zip::zip://a.png",
        "s3://bucket/a.png::https://example.org",
        "s3://*/a.png",
        "S3://bucket/a.png",
    ],
)
def test_other_places_and_chains_of_places_are_refused(run_segue, photos, tmp_path, given):
    result = run_segue("segment", given, "bright", "-o", tmp_path / "out")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "is a URL" in result.stderr or "is no URL" in result.stderr or "does not exist" in result.stderr


def test_a_folder_of_frames_is_not_taken_for_photos_without_a_word(run_segue, photos, tmp_path):
    make_frames(photos.parent / "walk")
    given = ("segment", "s3://bucket/walk", "bright", "-o", tmp_path / "out")
    result = run_segue(*given)
    assert result.exit_code == 2 and "frames, which is not read from a store" in result.stderr
    assert "3 done" in run_segue(*given, "--as", "images").stderr


def test_what_is_left_out_is_said(photos):
    make_image(photos / "deeper" / "a.png")
    for name in ("odd", "odd.raw", "notes.md", ".hidden.png"):
        (photos / name).write_text("")
    skipped: list[inputs.Skipped] = []
    found = inputs.find(URL, skipped=skipped)
    assert [source.name for source in found] == ["1.png", "2.png", "5.jpg", "7.png", "10.png"]
    assert {one.path.name: one.is_bad for one in skipped} == {
        "deeper": False,
        "notes.md": False,
        "odd": True,
        "odd.raw": True,
    }


@pytest.mark.parametrize("name", ["..", "x" * 300, "a\\..\\b.png", "a\0.png"])
def test_a_copy_stays_in_its_folder_whatever_it_is_called(tmp_path, name):
    place = Stored(f"{URL}/{name}").place(tmp_path)
    assert place.name == "input" and place.parent.parent == tmp_path
