"""Files of others: what is no file is refused at once, and text is found in its encoding."""

import os

import pytest

from segue.reading import decoded, open_regular, read_bytes, read_text

TEXT = '[{"image": "图.png", "text": ["红色的方块"]}]'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"])
def test_text_is_found_in_its_encoding(encoding):
    assert decoded(TEXT.encode(encoding))[0] == TEXT


def test_european_code_pages_are_not_taken_for_chinese():
    assert decoded("déjà vu, Größe, naïve café".encode("cp1252")) == ("déjà vu, Größe, naïve café", "cp1252")


def test_another_encoding_than_utf_8_is_told(tmp_path, caplog):
    (tmp_path / "a.json").write_bytes(TEXT.encode("gb18030"))
    assert read_text(tmp_path / "a.json") == TEXT
    assert "gb18030" in caplog.text


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="nor of another encoding that is known; save it as UTF-8"):
        decoded(b"\x81\x8d\x90\xff\x81")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "pipe")


@pytest.mark.parametrize(("name", "reason"), [("a\0b", "zero byte"), ("", "folder"), ("none", "No such file")])
def test_what_cannot_be_opened_says_why(tmp_path, name, reason):
    with pytest.raises(OSError, match=reason):
        open_regular(tmp_path / name)


def test_a_file_larger_than_allowed_is_not_read(tmp_path):
    (tmp_path / "large").write_bytes(b"0" * 11)
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_bytes(tmp_path / "large", 10)
