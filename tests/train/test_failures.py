"""What ends a training in the middle: each is one clear error, and the last good checkpoint stays.

A kill, a full disk, a missing image, a loss that is no number, memory that runs out.
"""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segue import config, loading
from segue.checkpoints import adapters
from segue.data.base import rng_for
from segue.errors import CheckpointError, ConfigError, DataError, LimitError, MediaError
from segue.files import alone
from segue.train import batch_stream, checkpoints, evaluation, loop, run, run_logger
from segue.train.recipe import Validation
from segue.train.run import train


def kill_over_and_over(recipe, root, first, stride):
    (root / "recipe.yaml").write_text(config.dump(recipe))
    script = Path(__file__).with_name("killed_training.py")
    command = [sys.executable, str(script), str(root / "recipe.yaml"), str(root), str(first), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.slow  # a process that imports torch, and a dozen short runs
def test_killed_at_any_moment_a_run_loses_at_most_the_steps_since_its_last_checkpoint(make_recipe, tmp_path):
    recipe = make_recipe(stage={"steps": 3}, save_every=1, keep=1)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=2, limit=1))
    assert kill_over_and_over(recipe, tmp_path, first=1, stride=11) > 5


def at(step, act, watcher):
    """Do something when a step is over, before it is saved."""
    watcher.step = lambda done, values: act() if done == step else None


def test_a_file_that_cannot_be_finished_leaves_the_last_checkpoint_and_no_litter(make_recipe, watcher):
    """Files may not grow beyond a limit from step 2 on: what a full disk does, in the middle of the tensors."""
    recipe = make_recipe(stage={"steps": 3}, save_every=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    at(2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1])), watcher)
    try:
        with pytest.raises(CheckpointError, match=r"step-000002: .*the checkpoints before it are whole") as told:
            train(recipe, watcher, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        del watcher.step
    assert "\n" not in str(told.value)
    assert [path.name for path in (recipe.output / "checkpoints").iterdir()] == ["step-000001"]
    assert train(recipe, watcher, device="cpu", resume=True).step == 3


MOUNT = ("mount", "-t", "tmpfs", "-o")


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 2 MB, on which two checkpoints of the tiny model have room, and three have not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run([*MOUNT, "size=2m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_the_last_checkpoint(make_recipe, watcher, small_disk):
    recipe = make_recipe(stage={"steps": 3}, save_every=1, output=small_disk / "run")
    with pytest.raises(CheckpointError, match=r"step-000003: .*No space left on device.*Free space and go on") as told:
        train(recipe, watcher, device="cpu")
    assert "\n" not in str(told.value)
    assert adapters.find(recipe.output).name == "step-000002"
    loading.load(recipe.output)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    with pytest.raises(CheckpointError, match="No space left on device; free space and go on with --resume"):
        train(recipe, watcher, device="cpu", resume=True)
    filler.unlink()
    assert config.load(type(recipe), recipe.output / "recipe.yaml") == recipe
    subprocess.run([*MOUNT, "remount,size=16m", "tmpfs", str(small_disk)], check=True)
    assert train(recipe, watcher, device="cpu", resume=True).step == 3


@pytest.mark.parametrize("name", ["log.jsonl", "validation.json"])
def test_a_disk_that_is_full_for_small_files_is_one_line_too(make_recipe, watcher, monkeypatch, name):
    recipe = make_recipe(save_every=1)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=2, limit=1))
    real = Path.open

    def full(self, mode="r", *rest, **named):
        if mode[0] in "wa" and self.name.lstrip(".") == name and (recipe.output / "checkpoints").exists():
            raise OSError(28, "No space left on device")
        return real(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CheckpointError, match=f"{name}: No space left on device; free space and go on with --resume"):
        train(recipe, watcher, device="cpu")
    assert adapters.find(recipe.output).name == "step-000001"


def test_a_recipe_or_log_that_cannot_be_written_anew_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("old")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: _raise(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="No space left"):
        run_logger.write_text(tmp_path / "recipe.yaml", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("recipe.yaml", "old")]


def _raise(error):
    raise error


def test_an_image_that_is_deleted_meanwhile_is_named_and_with_it_the_run_goes_on(make_recipe, watcher, tmp_path, draw):
    folder = draw(tmp_path / "mine")
    source = replace(make_recipe().data[0], root=folder)
    recipe = make_recipe(stage={"steps": 4}, data=(source,), save_every=1)
    whole = replace(recipe, output=tmp_path / "whole")
    train(whole, watcher, device="cpu")
    gone = {path: path.read_bytes() for path in (folder / "images").iterdir()}
    at(2, lambda: [path.unlink() for path in gone], watcher)
    with pytest.raises(MediaError, match=r"there is no \d\.png in \S*images"):
        train(recipe, watcher, device="cpu")
    assert adapters.find(recipe.output).name == "step-000002"
    for path, data in gone.items():
        path.write_bytes(data)
    del watcher.step
    assert train(recipe, watcher, device="cpu", resume=True).step == 4
    one, other = (checkpoints.read_all(adapters.find(out.output) / adapters.TENSORS) for out in (recipe, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_rate_that_is_far_too_high_ends_with_the_step_and_its_samples(make_recipe, watcher):
    recipe = make_recipe(stage={"steps": 9, "rate": 1e30, "warmup": 0.0}, save_every=1)
    with pytest.raises(
        DataError, match=r"the (loss|gradient) became (nan|inf) at step \d of stage 'only', on the samples"
    ):
        train(recipe, watcher, device="cpu")
    stored = checkpoints.read_all(adapters.find(recipe.output) / adapters.TENSORS)
    assert all(bool(tensor.isfinite().all()) for tensor in stored.values())


def test_a_sample_that_poisons_the_loss_is_named_and_nothing_is_learned_from_it(make_recipe, watcher, monkeypatch):
    recipe = make_recipe(stage={"steps": 4}, batch=1, save_every=1)
    make = run.setup.RowMaker.__call__
    poison = batch_stream.parts_of(recipe.data)[0].dataset.get(2, rng_for(0, 0, 2)).id

    def poisoned(self, sample):
        row = make(self, sample)
        if row.id == poison:
            row.example.media[-1].vision.pixels.fill_(float("nan"))
        return row

    monkeypatch.setattr(run.setup.RowMaker, "__call__", poisoned)
    with pytest.raises(DataError, match=f"the loss became nan at step .* on the samples {re.escape(poison)}. Nothing"):
        train(recipe, watcher, device="cpu")
    found = checkpoints.checkpoints(recipe.output)
    assert all(
        torch.isfinite(t).all() for path in found for t in checkpoints.read_all(path / adapters.TENSORS).values()
    )


def test_weights_that_are_no_numbers_are_never_saved(make_recipe, watcher):
    recipe = make_recipe(stage={"steps": 2}, save_every=1)
    held = []
    prepare = run.setup.prepare

    def remembered(*given):
        held.append(prepare(*given))
        return held[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.setup, "prepare", remembered)
        at(2, lambda: next(iter(held[0].parameters.values())).data.fill_(float("inf")), watcher)
        with pytest.raises(DataError, match="step-000002 was not written. The checkpoints before it are good"):
            train(recipe, watcher, device="cpu")
    assert [path.name for path in (recipe.output / "checkpoints").iterdir()] == ["step-000001"]


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation")


@pytest.mark.parametrize(
    ("place", "name", "error", "text"),
    [
        (evaluation, "evaluate", OUT, "memory ran out while evaluating after step 2 .CUDA out of memory. Tried"),
        (loop.StageLoop, "_terms", OUT, "memory ran out at step 1 .CUDA out of memory. Tried"),
        (loop.StageLoop, "_terms", MemoryError(), "memory ran out at step 1 .MemoryError"),
        (
            loop.StageLoop,
            "_terms",
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "a data worker died at step 1 .*Use fewer workers",
        ),
        (run.setup, "prepare", OUT, "memory ran out while stage 'only' was made ready"),
    ],
)
def test_memory_that_runs_out_anywhere_is_one_line_that_says_what_helps(
    make_recipe, watcher, monkeypatch, place, name, error, text
):
    recipe = make_recipe(save_every=1)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=2, limit=1))
    monkeypatch.setattr(place, name, lambda *_, **__: _raise(error))
    with pytest.raises(LimitError, match=text) as told:
        train(recipe, watcher, device="cpu")
    assert "\n" not in str(told.value)


def test_memory_that_runs_out_late_leaves_the_last_checkpoint(make_recipe, watcher, monkeypatch):
    recipe = make_recipe(save_every=1)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=2, limit=1))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: _raise(OUT))
    with pytest.raises(LimitError):
        train(recipe, watcher, device="cpu")
    assert adapters.find(recipe.output).name == "step-000001"
    loading.load(recipe.output)


def test_other_errors_of_torch_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shapes"), loop.enough_memory("now"):
        raise RuntimeError("shapes differ")


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew_with_resume(make_recipe, watcher):
    recipe = make_recipe()
    at(1, lambda: _raise(KeyboardInterrupt), watcher)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, watcher, device="cpu")
    del watcher.step
    assert train(recipe, watcher, device="cpu", resume=True).step == 2
    kinds = [json.loads(line)["kind"] for line in (recipe.output / "log.jsonl").read_text().splitlines()]
    assert kinds == ["stage", "step", "step"]


def test_what_a_killed_process_left_is_cleared_away(make_recipe, watcher):
    recipe = make_recipe()
    train(recipe, watcher, device="cpu", limit=1)
    folder = recipe.output / "checkpoints"
    for name in (".segue-abc/step-000002", "step-000000"):
        (folder / name).mkdir(parents=True)
        (folder / name / "trained.safetensors").write_bytes(b"half")
    train(recipe, watcher, device="cpu", resume=True)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001", "step-000002"]


def flipped(file):
    """The file with its last byte changed."""
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def reworded(old, new):
    return lambda file: file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trained.safetensors", flipped),
        ("state/optimizer.safetensors", flipped),
        *(
            ("checkpoint.json", reworded(*words))
            for words in (
                ('"stage": "only"', '"stage": "omly"'),
                ('"waited"', '"weited"'),
                ('"per_step": 1', '"per_step": "1"'),
                ('"best": null', '"best": "1"'),
                ('"stage_step": 1', '"stage_step": -1'),
            )
        ),
    ],
)
def test_a_checkpoint_that_a_disk_has_damaged_is_not_gone_on_from(make_recipe, watcher, name, change):
    recipe = make_recipe()
    train(recipe, watcher, device="cpu", limit=1)
    folder = recipe.output / "checkpoints" / "step-000001"
    change(folder / name)
    with pytest.raises(CheckpointError, match=f"{name} is not as it was written.*Move .*step-000001 away"):
        train(recipe, watcher, device="cpu", resume=True)


def test_damage_to_what_only_tells_of_a_run_is_told_and_the_run_goes_on(make_recipe, watcher, caplog):
    recipe = make_recipe()
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=1, limit=1))
    train(recipe, watcher, device="cpu", limit=1)
    for wrong in ("{", "[3]", '{"only": {"a": 3}}'):
        caplog.clear()
        for name in ("data.json", "validation.json"):
            (recipe.output / name).write_text(wrong)
        train(recipe, watcher, device="cpu", limit=1, resume=True)
        for name in ("data.json is damaged", "validation.json is damaged"):
            assert name in caplog.text


def test_two_runs_in_one_folder_do_not_clear_away_each_others_checkpoints(make_recipe, watcher):
    recipe = make_recipe()
    half = recipe.output / "checkpoints" / ".segue-0123456789ab"
    half.mkdir(parents=True)
    (recipe.output / "recipe.yaml").write_text(config.dump(recipe))
    with alone(recipe.output), pytest.raises(ConfigError, match="another run is writing to .*run"):
        train(recipe, watcher, device="cpu", resume=True)
    assert half.is_dir()
