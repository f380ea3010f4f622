import datetime
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from segue.checkpoints.pth import open_pth
from segue.errors import CheckpointError


class Hub:
    """Stands for what mmengine leaves in a checkpoint."""

    def __init__(self):
        self.history, self.seen = {"loss": np.zeros(4)}, {3, 4}


class Listed(list):
    """A list of a class of its own."""


class Trap:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {os.environ['SEGUE_TRAP']}",)


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEGUE_TRAP", str(tmp_path / "sprung"))
    return tmp_path / "sprung"


def saved(path: Path, content, **options) -> Path:
    torch.save(content, path / "x.pth", **options)
    return path / "x.pth"


def tensors() -> OrderedDict:
    whole = torch.arange(60.0).view(10, 6)
    return OrderedDict(
        plain=torch.randn(3, 4),
        parameter=torch.nn.Parameter(torch.randn(2).bfloat16()),
        part=whole[2:4, ::2],
        turned=whole.t(),
        number=torch.tensor(3),
        none=torch.empty(0, 4),
        flags=torch.tensor([True, False]),
        half=torch.randn(2, 2).half(),
    )


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_tensors_are_read_as_they_were_saved_whatever_they_share(tmp_path, wrapper):
    state = tensors()
    file = open_pth(saved(tmp_path, state if wrapper is None else {wrapper: state, "meta": {"epoch": 1}}))
    assert {name: spec.shape for name, spec in file.tensors.specs.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert all(torch.equal(file.tensors.read(name), tensor.detach()) for name, tensor in state.items())
    assert all(file.tensors.read(name).dtype == tensor.dtype for name, tensor in state.items())
    assert file.others == (() if wrapper is None else ("meta",))


def test_objects_of_any_class_may_stand_beside_the_tensors_and_do_nothing(tmp_path, trap):
    beside = {
        "meta": {"time": datetime.datetime(2025, 1, 1), "lr": np.float64(3), "tags": {1}, "fixed": frozenset([2])}
    }
    beside |= {"message_hub": Hub(), "listed": Listed([1]), "trap": Trap(), "raw": bytearray(b"x")}
    file = open_pth(saved(tmp_path, {"state_dict": tensors(), **beside}, pickle_protocol=4))
    assert file.others == tuple(beside) and "plain" in file.tensors.specs
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {"a": torch.zeros(1), "b": Trap()}}, "'b': posix.system"),
        ({"a": torch.zeros(1), "b": Hub()}, r"'b': \S*Hub"),
        ({"a": torch.zeros(1), "b": 3}, "'b': int"),
        ({"a": torch.zeros(1).to(torch.float8_e4m3fn)}, "'a': torch._utils._rebuild_tensor_v3"),
        ({"\x1b[2J": torch.zeros(1)}, r"x1b\[2J"),
        ({"state_dict": Hub()}, r"in an object of \S*Hub"),
        (Trap(), "an object of posix.system"),
        ([torch.zeros(1)], "an object of list"),
        (torch.nn.Linear(1, 1), "an object of torch.nn.modules.linear.Linear"),
    ],
)
def test_anything_but_tensors_among_them_is_refused_by_name_and_not_run(tmp_path, trap, content, words):
    with pytest.raises(CheckpointError, match=words):
        open_pth(saved(tmp_path, content))
    assert not trap.exists()


def rewritten(path: Path, change) -> Path:
    """The archive with its entries, as a dict of bytes, changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def without(suffix):
    return lambda entries: entries.pop(next(name for name in entries if name.endswith(suffix)))


def replaced(suffix, data):
    return lambda entries: entries.update({next(name for name in entries if name.endswith(suffix)): data})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("data.pkl"), "without a data.pkl"),
        (without("data/0"), "the numbers of a are not there"),
        (replaced("data/0", b"1234"), "not as many as it says"),
        (replaced("byteorder", b"big"), "other byte order"),
        (replaced("data.pkl", b"\x80\x02}q\x00("), "no readable checkpoint"),
        (replaced("data.pkl", b"no pickle"), "no readable checkpoint"),
        (replaced("data.pkl", b"\x80\x02\x82\x01."), "asks for more than tensors"),
    ],
)
def test_a_damaged_archive_is_an_error_of_the_house(tmp_path, change, words):
    path = rewritten(saved(tmp_path, {"a": torch.zeros(5)}), change)
    with pytest.raises(CheckpointError, match=words):
        open_pth(path)


def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path):
    def stretch(entries):
        name = next(name for name in entries if name.endswith("data.pkl"))
        # the shape (5,) as it stands in the pickle
        entries[name] = entries[name].replace(b"K\x05\x85", b"K\x09\x85")

    with pytest.raises(CheckpointError, match="beyond its 5 numbers|more numbers than its storage"):
        open_pth(rewritten(saved(tmp_path, {"a": torch.zeros(5)}), stretch))


@pytest.mark.parametrize("tensor", [torch.zeros(0, 3), torch.zeros(0, 3, 3), torch.zeros(9).as_strided((1,), (3,))])
def test_a_size_or_stride_that_torch_cannot_count_is_refused(tmp_path, tensor):
    def stretch(entries):
        name = next(name for name in entries if name.endswith("data.pkl"))
        # three, as it stands in the pickle
        entries[name] = entries[name].replace(b"K\x03", b"\x8a\x0a" + (2**72).to_bytes(10, "little"))

    with pytest.raises(CheckpointError, match="a tensor has shape"):
        open_pth(rewritten(saved(tmp_path, {"a": tensor}), stretch))


@pytest.mark.parametrize("size", [2**31, 2**61])
def test_an_empty_tensor_of_huge_sizes_is_refused(tmp_path, size):
    def stretch(entries):
        name = next(name for name in entries if name.endswith("data.pkl"))
        entries[name] = entries[name].replace(b"K\x03", b"\x8a\x08" + size.to_bytes(8, "little"))

    with pytest.raises(CheckpointError, match="a tensor has shape"):
        open_pth(rewritten(saved(tmp_path, {"a": torch.zeros(0, 3, 3)}), stretch))


def test_numbers_that_were_changed_on_the_way_are_noticed(tmp_path):
    path = saved(tmp_path, {"a": torch.full((5,), 7.0)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<f", 7.0) * 5, struct.pack("<f", 8.0) * 5))
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_pth(path).tensors.read("a")


def test_files_that_are_no_archive_are_told_apart_from_missing_ones(tmp_path):
    old = saved(tmp_path, {"a": torch.zeros(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"since version 1\.6"):
        open_pth(old)
    with pytest.raises(CheckpointError, match="No such file"):
        open_pth(tmp_path / "none.pth")
