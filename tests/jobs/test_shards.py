import errno
import fcntl
import json
from pathlib import Path

import pytest

from segue.errors import DataError
from segue.files import alone
from segue.jobs.manifest import Manifest

RUN = "0123456789abcdef"


def put(out: Path, number: int, *records: tuple[str, str | None, str]) -> None:
    names, rest = ("source", "folder", "status"), {"settings": "s", "sha256": "h", "stamp": "t"}
    lines = [json.dumps(rest | dict(zip(names, one, strict=True))) for one in records]
    (out / f"manifest-{number}-of-2-{RUN}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_an_input_in_two_folders_is_told(tmp_path):
    put(tmp_path, 0, ("/dog.jpg", "dog", "ok"))
    put(tmp_path, 1, ("/dog.jpg", "dog-1234", "ok"))
    with pytest.raises(DataError, match="/dog.jpg was done twice, in .*/dog and .*/dog-1234"):
        Manifest(tmp_path)


def test_two_inputs_in_one_folder_are_told(tmp_path):
    put(tmp_path, 0, ("/a/dog.jpg", "dog", "ok"))
    put(tmp_path, 1, ("/b/dog.jpg", "dog", "ok"))
    with pytest.raises(DataError, match="/a/dog.jpg and /b/dog.jpg both claim"):
        Manifest(tmp_path)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_result_counts_over_a_failure_of_another_shard(tmp_path, order):
    put(tmp_path, order[0], ("/dog.jpg", "dog", "ok"))
    put(tmp_path, order[1], ("/dog.jpg", None, "failed"))
    assert Manifest(tmp_path).records["/dog.jpg", ()]["status"] == "ok"


def test_a_file_system_that_cannot_lock_is_told_of(tmp_path, monkeypatch, caplog):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone(tmp_path):
        pass
    assert "cannot be locked here: let no other run write to it" in caplog.text
