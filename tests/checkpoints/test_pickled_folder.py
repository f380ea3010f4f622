"""Folders of pickled weights rewritten: the same numbers, and nothing executed."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue import weights
from segue.checkpoints import pickled_folder
from segue.errors import CheckpointError, ConfigError

TENSORS = {"a.weight": torch.randn(3, 4, dtype=torch.bfloat16), "b.bias": torch.arange(5.0), "c": torch.ones(2, 2).T}


@pytest.fixture
def folder(tmp_path):
    """Two shards with an index, a configuration, and code that must stay behind."""
    home = tmp_path / "pickled"
    home.mkdir()
    shards = {"a.weight": "one.bin", "b.bias": "two.bin", "c": "two.bin"}
    for file in set(shards.values()):
        torch.save({name: TENSORS[name] for name in shards if shards[name] == file}, home / file)
    (home / pickled_folder.INDEX).write_text(json.dumps({"weight_map": shards}))
    (home / "config.json").write_text("{}")
    (home / "qwen.tiktoken").write_text("YQ== 0")
    (home / "modeling.py").write_text("raise SystemExit")
    return home


def test_shards_are_rewritten_with_the_same_numbers(folder, tmp_path):
    out = tmp_path / "out"
    assert pickled_folder.rewrite(folder, out) == 3
    assert sorted(file.name for file in out.iterdir()) == [
        *("config.json", "lineage.json", "model.safetensors", "qwen.tiktoken")
    ]
    found = load_file(out / "model.safetensors")
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert weights.read_json(out / "lineage.json")["made_from"]["files"] == ["one.bin", "two.bin"]


def test_a_single_file_will_do(folder, tmp_path):
    (folder / pickled_folder.INDEX).unlink()
    torch.save(TENSORS, folder / pickled_folder.SINGLE)
    assert pickled_folder.rewrite(folder, tmp_path / "out") == 3


def test_what_is_not_whole_leaves_nothing(folder, tmp_path):
    (folder / "two.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 2 files .* fetch two\.bin"):
        pickled_folder.rewrite(folder, tmp_path / "out")
    (folder / pickled_folder.INDEX).unlink()
    with pytest.raises(CheckpointError, match="expected a folder of pickled weights"):
        pickled_folder.rewrite(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pickled"]


def test_an_index_that_leads_elsewhere_is_refused(folder, tmp_path):
    (folder / pickled_folder.INDEX).write_text(json.dumps({"weight_map": {"a": "../two.bin"}}))
    with pytest.raises(CheckpointError, match="expected files beside it"):
        pickled_folder.rewrite(folder, tmp_path / "out")


def test_code_in_a_pickle_is_not_run(folder, tmp_path):
    with zipfile.ZipFile(folder / "two.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n(S'touch /tmp/segue-was-here'\ntR.")
    with pytest.raises(CheckpointError):
        pickled_folder.rewrite(folder, tmp_path / "out")


def test_a_folder_that_is_there_is_not_overwritten(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        pickled_folder.rewrite(folder, tmp_path / "out")


@pytest.mark.parametrize("is_safe", [False, True])
def test_what_wraps_all_names_is_left_out_where_that_is_asked_for(folder, tmp_path, is_safe):
    source, out = folder, tmp_path / "out"
    wrapped = {f"module.{name}": tensor.contiguous() for name, tensor in TENSORS.items()}
    if is_safe:
        source = tmp_path / "safe"
        source.mkdir()
        save_file(wrapped, source / "model.safetensors")
    else:
        (folder / pickled_folder.INDEX).unlink()
        torch.save(wrapped, folder / pickled_folder.SINGLE)
    assert pickled_folder.rewrite(source, out, strip="module.") == 3
    found = load_file(out / "model.safetensors")
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in found)
    with pytest.raises(ConfigError, match=r"--strip _orig_mod\.: the names of 3 of 3 tensors do not begin so"):
        pickled_folder.rewrite(source, tmp_path / "other", strip="_orig_mod.")
