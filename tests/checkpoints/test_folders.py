"""Model folders are written whole or not at all."""

import json
from collections import namedtuple

import pytest
import torch

from segue import loading, weights
from segue.checkpoints import convert, folders
from segue.errors import CheckpointError, ConfigError
from segue.weights import lazy


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(official_folder):
    return official_folder


def test_a_written_folder_loads_and_nothing_else_is_left(source, target, tmp_path):
    convert.import_folder(source, target())
    assert names(tmp_path) == ["out"]
    assert names(target().folder) == [
        *("config.json", "lineage.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]
    loading.load(target().folder, device="cpu", dtype="fp32")


def test_a_folder_that_is_there_is_refused_unless_it_may_be_replaced(source, target):
    convert.import_folder(source, target())
    (target().folder / "mine.txt").touch()
    with pytest.raises(ConfigError, match="exists already"):
        convert.import_folder(source, target())
    convert.import_folder(source, target(overwrite=True, dtype="bf16"))
    assert not (target().folder / "mine.txt").exists()
    assert weights.read_json(target().folder / "lineage.json")["made_from"]["dtype"] == "bf16"


def test_what_is_no_model_folder_is_never_replaced(source, target, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="no model folder"):
        convert.import_folder(source, target(overwrite=True))
    assert names(tmp_path / "out") == ["thesis.tex"]


def test_a_source_is_never_written_over(source, target):
    convert.import_folder(source, target())
    inside = target().folder
    for out in (inside, inside.parent):
        with pytest.raises(ConfigError, match="is read; choose another folder"):
            convert.export(inside, convert.Target(folder=out, overwrite=True))


def test_an_unknown_precision_is_refused_before_anything(source, target):
    with pytest.raises(ConfigError, match="unknown dtype 'int4'; expected fp32, bf16, fp16"):
        convert.import_folder(source, target(dtype="int4"))


@pytest.mark.parametrize("stage", ["write", "verify"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_folder_and_no_half_of_a_new_one(source, target, tmp_path, stage, error):
    convert.import_folder(source, target())
    before = (target().folder / "lineage.json").read_text()

    def stop(at, done, total):
        if at == stage:
            raise error

    kind = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    for name in ("out", "fresh"):
        with pytest.raises(kind):
            convert.import_folder(source, target(name, overwrite=True, progress=stop))
    assert names(tmp_path) == ["out"] and (target().folder / "lineage.json").read_text() == before


def test_what_is_not_yet_tested_does_not_load(source, target, tmp_path):
    def look(at, done, total):
        if at == "verify":
            (part,) = tmp_path.glob(".segue-*")
            assert not (part / "config.json").exists()
            with pytest.raises(CheckpointError):
                loading.load(part)

    convert.import_folder(source, target(progress=look))


def test_too_little_space_is_told_before_writing(source, target, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(2_000_000))
    with pytest.raises(CheckpointError, match=r"0\.1 GB are needed and 0\.0 GB free"):
        convert.import_folder(source, target())
    assert names(tmp_path) == []


def test_numbers_that_changed_on_the_disk_are_found_by_component(source, target, tmp_path, monkeypatch):
    true = lazy.write_shards

    def spoiled(folder, tensors, **options):
        digests = true(folder, tensors, **options)
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-3] ^= 1  # the last tensor is one of the segmentation projector's
        (folder / "model.safetensors").write_bytes(data)
        return digests

    monkeypatch.setattr(lazy, "write_shards", spoiled)
    with pytest.raises(CheckpointError, match=r"is not what was written \(\w"):
        convert.import_folder(source, target())
    assert names(tmp_path) == []


def test_progress_tells_every_byte_of_every_stage(source, target):
    seen = {}

    def watch(stage, done, total):
        told, _ = seen.get(stage, (0, total))
        seen[stage] = (told + done, total)

    convert.import_folder(source, target(progress=watch))
    assert list(seen) == ["hash", "write", "verify"]
    assert all(told == total > 1_000_000 for told, total in seen.values())


def test_the_hashes_of_components_tell_which_of_them_two_models_share(source, target, tensors_of):
    convert.import_folder(source, target("one"))
    changed = target("changed").folder
    changed.mkdir()
    for file in source.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import save_file

    tensors = tensors_of(source)
    tensors["mlp1.1.bias"] += 1
    save_file(tensors, changed / "model.safetensors")
    convert.import_folder(changed, target("two"))
    one, two = (
        json.loads((target(name).folder / "lineage.json").read_text())["made_from"]["groups"] for name in ("one", "two")
    )
    assert [name for name in one if one[name] != two[name]] == ["connector"]
    assert set(one) == {
        *("vision", "connector", "language", "embeddings", "seg_projector", "mask_decoder"),
        *("sam2.encoder", "sam2.prompts", "sam2.memory"),
    }


def test_a_model_in_several_files_is_the_same_model(source, target, monkeypatch):
    true = lazy.write_shards
    monkeypatch.setattr(lazy, "write_shards", lambda *given, **options: true(*given, **options, shard_bytes=500_000))
    convert.import_folder(source, target())
    files = weights.checkpoint_files(target().folder)
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    whole, parts = folders.open_folder(source).tensors, folders.open_folder(target().folder).tensors
    assert all(torch.equal(parts.read(name), whole.read(name)) for name in whole.specs)
