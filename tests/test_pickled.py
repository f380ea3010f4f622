import collections
import gc
import os
import pickle
import zipfile

import numpy as np
import pytest
from layouts import write_pickle

from segue.checkpoints.pth import _TorchReader, open_pth
from segue.errors import DataError, SegueError
from segue.pickled import Reader, read_pickled

shared = [1, 2]
PLAIN = {
    "refs": [
        {"ann_id": 9001, "split": "train", "sentences": [{"raw": "Left man", "sent": "left man"}]},
        shared,
        shared,
    ],
    "numbers": [0, 1, -5, 300, 70000, 2**40, 1.5, float("inf"), True, None],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "text": ["Ähre", "线", "x" * 300],
}


class Opens:
    def __reduce__(self):
        return os.system, ("touch broken_in",)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_as_it_was_written(tmp_path, protocol):
    assert read_pickled(write_pickle(tmp_path / "refs.p", PLAIN, protocol)) == PLAIN


def test_bytes_and_old_strings_are_read(tmp_path):
    assert read_pickled(write_pickle(tmp_path / "mask_dict.pkl", [b"abc", b"x" * 300], 4)) == [b"abc", b"x" * 300]
    (tmp_path / "python2.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'left man'\np3\nsS'id'\nI7\nsa.")
    assert read_pickled(tmp_path / "python2.p") == [{"sent": "left man", "id": 7}]


@pytest.mark.parametrize(
    "content", [Opens(), [{"a": Opens()}], collections.OrderedDict(a=1), np.zeros(3), np.float64(1), {1, 2}]
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_anything_that_could_run_is_refused_and_not_run(tmp_path, monkeypatch, content, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="instruction .*convert the file to JSON"):
        read_pickled(write_pickle(tmp_path / "evil.p", content, protocol))
    assert not (tmp_path / "broken_in").exists()


def test_a_memo_of_two_thousand_million_places_takes_no_memory(tmp_path):
    (tmp_path / "wide.p").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
    assert read_pickled(tmp_path / "wide.p") is None


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"]q\x00(", b"t.", b".", b"h\x05.", b"K\x01K\x02a.", b"((u."])
def test_damage_is_told(tmp_path, data):
    (tmp_path / "cut.p").write_bytes(data)
    with pytest.raises(DataError, match=r"cut\.p"):
        read_pickled(tmp_path / "cut.p")


@pytest.mark.parametrize("read", [read_pickled, open_pth])
def test_so_many_instructions_are_followed_and_no_more_and_garbage_is_collected_afterwards(tmp_path, monkeypatch, read):
    monkeypatch.setattr(Reader, "most", 1000)
    monkeypatch.setattr(_TorchReader, "most", 1000)
    nested = b"\x80\x02}()" + b"\x85" * 2000 + b"I1\nu."
    with zipfile.ZipFile(tmp_path / "deep.p", "w") as archive:
        archive.writestr("a/data.pkl", nested)
    if read is read_pickled:
        (tmp_path / "deep.p").write_bytes(nested)
    with pytest.raises(SegueError, match="has more than 1,000 instructions"):
        read(tmp_path / "deep.p")
    assert gc.isenabled()


def test_every_cut_of_a_file_is_told(tmp_path):
    whole = pickle.dumps({key: PLAIN[key] for key in ("refs",)}, protocol=2)
    for length in range(len(whole)):
        (tmp_path / "cut.p").write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_pickled(tmp_path / "cut.p")
