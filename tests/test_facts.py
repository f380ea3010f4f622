"""Facts about files that are remembered: never those of another content, and no file read twice without need."""

import hashlib

import pytest

from segue import facts
from segue.facts import FileFacts


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    return path


def left_alone(monkeypatch, file):
    monkeypatch.setattr(facts, "time", lambda: file.stat().st_mtime + 60)


def test_28_a_file_that_has_the_same_length_and_a_clock_that_was_turned_back_is_read_again(file, tmp_path, monkeypatch):
    known = FileFacts(tmp_path / "known")
    monkeypatch.setattr(facts, "time", lambda: file.stat().st_mtime - 3600)
    before = known.hash(file)
    assert not list(tmp_path.glob("known/*/*")), "what is dated in the future is not remembered"
    file.write_bytes(b"two")
    assert known.hash(file) == hashlib.sha256(b"two").hexdigest() != before


def test_a_file_whose_name_is_no_text_is_read_too(tmp_path):
    path = tmp_path / "a\udcff"
    path.write_bytes(b"1")
    assert FileFacts().hash(path) == facts.file_hash(path)


@pytest.mark.parametrize("folder", ["known", None])
def test_a_file_that_was_left_alone_is_read_once(file, tmp_path, monkeypatch, folder):
    known = FileFacts(folder and tmp_path / folder)
    left_alone(monkeypatch, file)
    first = known.hash(file)
    monkeypatch.setattr(facts, "file_hash", None)
    assert (known if folder is None else FileFacts(tmp_path / folder)).hash(file) == first


def test_a_damaged_memory_of_hashes_is_not_believed(file, tmp_path, monkeypatch):
    known = FileFacts(tmp_path / "known")
    left_alone(monkeypatch, file)
    first = known.hash(file)
    (row,) = tmp_path.glob("known/*/*")
    text = row.read_text()
    for position in range(0, len(text), 7):
        row.write_text(text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :])
        assert known.hash(file) == first


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_hashing(file, tmp_path, monkeypatch):
    (tmp_path / "known").write_bytes(b"a file")
    left_alone(monkeypatch, file)
    assert FileFacts(tmp_path / "known").hash(file) == facts.file_hash(file)


def test_what_was_done_with_a_file_is_done_once_while_it_does_not_change(file, tmp_path, monkeypatch):
    known, done = FileFacts(tmp_path / "known"), []

    def fail():
        raise ValueError("it has a fault")

    left_alone(monkeypatch, file)
    with pytest.raises(ValueError, match="it has a fault"):
        known.once(file, "sound", fail)
    assert known.once(file, "sound", lambda: done.append(1))
    assert not known.once(file, "sound", lambda: done.append(2))
    assert known.once(file, "other", lambda: done.append(3))
    file.write_bytes(b"four")
    left_alone(monkeypatch, file)
    assert known.once(file, "sound", lambda: done.append(4))
    assert done == [1, 3, 4]
