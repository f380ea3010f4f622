import os
from time import time

import pytest

from segue.errors import MediaError
from segue.files import ABANDONED, OLD, PART, alone, atomic_folder, recover, replace_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_its_block_ends_well(tmp_path):
    with atomic_folder(tmp_path / "deep/out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep/out").exists()
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep/out") == ["a"]


def test_a_folder_that_is_there_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("")
    names_of_ours = ("old", "new")
    with pytest.raises(MediaError, match="there already"), atomic_folder(tmp_path / "out"):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out", replaces=names_of_ours):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]
    with atomic_folder(tmp_path / "out", replaces=names_of_ours) as folder:
        (folder / "new").write_text("")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_a_failed_write_says_which_folder_and_leaves_nothing(tmp_path):
    with pytest.raises(MediaError, match="cannot write .*out: .*free space"), atomic_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_what_was_not_written_here_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    for name, message in (("file", "is a file"), ("out", "holds thesis.tex")):
        with pytest.raises(MediaError, match=message), atomic_folder(tmp_path / name, replaces=("images",)):
            pass
    assert names(tmp_path) == ["file", "out"] and names(tmp_path / "out") == ["thesis.tex"]


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_name(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "out", tmp_path / "gone")
    assert names(tmp_path) == ["out"]


def test_a_folder_is_replaced_although_a_killed_process_left_what_it_had_replaced(tmp_path):
    for name in ("out", f"{OLD}out", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    replace_folder(tmp_path / "out", tmp_path / "new")
    assert names(tmp_path) == ["out"] and (tmp_path / "out/of").read_text() == "new"


def test_what_a_killed_process_left_is_removed_or_comes_back(tmp_path):
    for name in (".segue-half", f"{OLD}whole", f"{OLD}replaced", "replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    (tmp_path / ".segue-half.json").write_text("{")
    recover(tmp_path)
    assert names(tmp_path) == ["replaced", "whole"]
    assert [(tmp_path / name / "of").read_text() for name in names(tmp_path)] == ["replaced", f"{OLD}whole"]


def test_what_only_looks_left_behind_stays(tmp_path):
    (tmp_path / "theirs").mkdir()
    for name in ("mine/photos", "mine/.old-photos", "mine/.old-letters", "theirs/of"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine" / f"{OLD}file").write_text("")
    for name in ("half", "link"):
        (tmp_path / "mine" / f"{PART}{name}").symlink_to(tmp_path / ("theirs" if name == "half" else "nowhere"))
    (tmp_path / "mine" / f"{OLD}link").symlink_to(tmp_path / "theirs")
    recover(tmp_path / "mine")
    assert names(tmp_path / "mine") == [".old-letters", ".old-photos", f"{OLD}file", f"{OLD}link", "photos"]
    (tmp_path / "new").mkdir()
    replace_folder(tmp_path / "mine/photos", tmp_path / "new")
    assert ".old-photos" in names(tmp_path / "mine") and names(tmp_path / "theirs") == ["of"]


def test_what_a_killed_process_left_goes_and_what_one_is_at_work_on_stays(tmp_path):
    old = time() - 2 * ABANDONED
    for name in ("0123456789ab", "ba9876543210", "mine"):
        (tmp_path / f"{PART}{name}").mkdir()
        os.utime(tmp_path / f"{PART}{name}", (old, old))
    (tmp_path / f"{PART}aaaaaaaaaaaa").mkdir()
    with alone(tmp_path / f"{PART}ba9876543210"), atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [f"{PART}aaaaaaaaaaaa", f"{PART}ba9876543210", f"{PART}mine", "out"]
