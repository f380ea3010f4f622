import errno
import json
import os
from pathlib import Path

import pytest

from segue.errors import ConfigError, DataError, MediaError, SegueError
from segue.files import OLD
from segue.jobs import manifest


def record(source: str, folder: str | None = "a", status: str = "ok", settings: str = "s") -> dict:
    return {"source": source, "status": status, "folder": folder, "settings": settings, "sha256": "h", "stamp": "t"}


def finish(folder: Path, source: str, settings: str = "s") -> None:
    """A finished result as far as the manifest cares."""
    folder.mkdir(parents=True)
    result = {"format": 2, "source": {"path": source, "sha256": "h", "stamp": "t"}, "fingerprint": settings}
    result["settings"] = {}
    (folder / "result.json").write_text(json.dumps({**result, "seconds": 1.0, "regions": []}))


def sources(out: Path) -> list[str]:
    return [json.loads(line)["source"] for line in (out / manifest.NAME).read_text().splitlines()]


def test_records_come_back_in_order(tmp_path):
    with manifest.opened(tmp_path / "new" / "out") as opened:
        opened.add(record("/b", "b"))
        opened.add(record("/a", "a"))
    assert sources(tmp_path / "new" / "out") == ["/b", "/a"]
    with manifest.opened(tmp_path / "new" / "out") as again:
        assert again.records == opened.records


def test_a_later_record_of_a_source_takes_the_place_of_the_earlier(tmp_path):
    with manifest.opened(tmp_path) as opened:
        for made in (record("/a", None, "failed"), record("/b", None, "failed"), record("/a")):
            opened.add(made)
        assert sources(tmp_path) == ["/a", "/b", "/a"]
    assert sources(tmp_path) == ["/a", "/b"]
    with manifest.opened(tmp_path) as again:
        assert again.records["/a", ()]["status"] == "ok"


def test_a_last_line_torn_anywhere_is_mended(tmp_path):
    path = tmp_path / manifest.NAME
    whole = (json.dumps(record("/a")) + "\n").encode()
    torn = json.dumps(record("/b")).encode()
    for length in range(len(torn) + 1):
        path.write_bytes(whole + torn[:length])
        with manifest.opened(tmp_path) as opened:
            assert list(opened.records) == [("/a", ())]
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        *("{", '"text"', "{}", "[1]", '{"source": "/c"}', json.dumps({**record("/c"), "phrases": [[]]})),
        *(json.dumps({**record("/c"), **wrong}) for wrong in ({"source": ["/c"]}, {"status": "?"}, {"folder": 3})),
        "[" * 100_000,
        *(json.dumps({**record("/c"), "phrases": wrong}) for wrong in (3, [3], [{}])),
        *(json.dumps(record("/c", folder)) for folder in (None, "", "..", "../c", "/c", "c/")),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    (tmp_path / manifest.NAME).write_text(f"{json.dumps(record('/a'))}\n{line}\n{json.dumps(record('/b'))}\n")
    with pytest.raises(DataError, match="line 2 of"), manifest.opened(tmp_path):
        pass


def test_what_was_finished_but_not_listed_is_listed(tmp_path):
    finish(tmp_path / "a", "/a")
    finish(tmp_path / "b", "/b")
    with manifest.opened(tmp_path) as opened:
        assert [made["folder"] for made in opened.records.values()] == ["a", "b"]
    assert sources(tmp_path) == ["/a", "/b"]


def test_a_copy_that_somebody_made_of_a_result_does_not_take_its_place(tmp_path):
    finish(tmp_path / "a", "/a")
    with manifest.opened(tmp_path):
        finish(tmp_path / "a copy", "/a")
    with manifest.opened(tmp_path) as again:
        assert [made["folder"] for made in again.records.values()] == ["a"]


def test_a_source_that_had_failed_and_was_then_finished_unlisted_is_listed(tmp_path):
    finish(tmp_path / "a", "/a")
    (tmp_path / manifest.NAME).write_text(json.dumps(record("/a", None, "failed")) + "\n")
    with manifest.opened(tmp_path) as opened:
        assert opened.records["/a", ()]["status"] == "ok"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', *(f'{{"format": {n}, "fingerprint": "s"}}' for n in (2, 99))]
)
def test_other_peoples_results_are_not_listed(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text(text)
    with manifest.opened(tmp_path) as opened:
        assert opened.records == {}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"source": value} for value in (3, [], {}, {"path": [1], "sha256": "h", "stamp": "t"})),
        *({"settings": value} for value in (3, [[1]], {"phrases": 3}, {"phrases": [[1]]})),
        *({"regions": value} for value in (3, {"a": 1}, [1])),
        {"frames": 3},
    ],
)
def test_a_result_that_a_disk_has_damaged_is_none(tmp_path, wrong):
    finish(tmp_path / "a", "/a")
    file = tmp_path / "a" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with manifest.opened(tmp_path) as opened:
        assert opened.records == {} and manifest.read_result(tmp_path / "a") is None
    file.write_text("[" * 100_000)
    assert manifest.read_result(tmp_path / "a") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_in_the_place_of_the_list_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / manifest.NAME)
    with pytest.raises(OSError, match="no regular file"), manifest.opened(tmp_path):
        pass


def test_leftovers_of_a_killed_run_go_and_what_it_was_replacing_comes_back(tmp_path):
    finish(tmp_path / ".segue-a", "/a")
    finish(tmp_path / f"{OLD}b", "/b")
    finish(tmp_path / f"{OLD}c", "/c", "old")
    finish(tmp_path / "c", "/c", "new")
    (tmp_path / ".segue-manifest.jsonl").write_text("half")
    with manifest.opened(tmp_path) as opened:
        found = {made["folder"]: made["settings"] for made in opened.records.values()}
    assert found == {"b": "s", "c": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", manifest.NAME]


def test_a_result_holds_by_its_line_or_by_its_own_word(tmp_path):
    finish(tmp_path / "a", "/a", "new")
    with manifest.opened(tmp_path) as opened:
        opened.add(record("/a", settings="old"))
        opened.add(record("/gone", "gone"))
        held = {
            (source, settings): opened.finished(Path(source), lambda made, s=settings: made["settings"] == s)
            is not None
            for source in ("/a", "/gone", "/never")
            for settings in ("old", "new", "other")
        }
    assert {key for key, value in held.items() if value} == {("/a", "old"), ("/a", "new")}


def test_a_source_keeps_its_folder_and_a_stranger_keeps_his(tmp_path):
    (tmp_path / "cat").mkdir()
    with manifest.opened(tmp_path) as opened:
        opened.add(record("/photos/dog.jpg", "dog"))
        names = [folder.name for folder in opened.assign([Path("/photos/dog.jpg"), Path("/photos/cat.jpg")]).values()]
    assert names[0] == "dog" and names[1].startswith("cat-")


def test_two_runs_into_one_folder_are_refused(tmp_path):
    with (
        manifest.opened(tmp_path),
        pytest.raises(ConfigError, match="another run is writing"),
        manifest.opened(tmp_path),
    ):
        pass
    with manifest.opened(tmp_path):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(ConfigError, match="takes a folder"), manifest.opened(out):
            pass


def test_half_a_line_that_the_disk_refused_is_taken_back(tmp_path, monkeypatch):
    with manifest.opened(tmp_path) as opened:
        opened.add(record("/a"))
        before = (tmp_path / manifest.NAME).read_bytes()

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            opened.add(record("/b"))
        assert (tmp_path / manifest.NAME).read_bytes() == before
        assert list(opened.records) == [("/a", ())]


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (PermissionError(errno.EACCES, "x", "out/a/result.json"), "permission denied"),
        (PermissionError(errno.EACCES, "x", "model/config.json"), None),
        (NotADirectoryError(errno.ENOTDIR, "x", "out/a"), "a file is in the way"),
        (ConnectionError("x"), None),
        (DataError("x"), None),
    ],
)
def test_a_disk_that_takes_no_more_is_told_from_other_errors(raised, text):
    with pytest.raises(SegueError if text else type(raised), match=text or "x"), manifest.disk_errors(Path("out")):
        raise raised


def test_an_error_caused_by_a_full_disk_tells_of_the_disk():
    with pytest.raises(SegueError, match="cannot write to out: the disk is full"), manifest.disk_errors(Path("out")):
        raise MediaError("cannot write x.png") from OSError(errno.ENOSPC, "x")
