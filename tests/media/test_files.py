import pytest

from segue.errors import MediaError
from segue.media.files import atomic_folder


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
    with pytest.raises(MediaError, match="there already"), atomic_folder(tmp_path / "out"):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out", overwrite=True):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]
    with atomic_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_a_failed_write_says_which_folder_and_leaves_nothing(tmp_path):
    with pytest.raises(MediaError, match="cannot write .*out: .*free space"), atomic_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_file_of_that_name_gives_way_when_asked(tmp_path):
    (tmp_path / "out").write_text("file")
    with atomic_folder(tmp_path / "out", overwrite=True):
        pass
    assert names(tmp_path) == ["out"] and (tmp_path / "out").is_dir()
