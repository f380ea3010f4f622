"""The same figures for people, for programs and for TensorBoard."""

import sys

import pytest

from segue.train import run_logger
from segue.train.run import train


def scalars(run):
    """What TensorBoard shows of a run: steps and values by name."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs TensorBoard, of the extra `train`"
    )
    read = reader.EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return {name: [(found.step, found.value) for found in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_tensorboard_shows_the_figures_of_the_log_also_after_a_stop(make_recipe, watcher):
    pytest.importorskip("tensorboard", reason="needs TensorBoard, of the extra `train`")
    recipe = make_recipe(stage={"steps": 3}, save_every=2, keep=9)
    train(recipe, watcher, device="cpu")
    (newest,) = (recipe.output / "checkpoints").glob("*3")
    newest.rename(recipe.output / "lost")  # as if the run had been killed just before
    train(recipe, watcher, device="cpu", resume=True)
    said = [line for line in run_logger.lines(recipe.output / "log.jsonl") if line["kind"] == "step"]
    assert [line["step"] for line in said] == [1, 2, 3]
    shown = scalars(recipe.output)
    assert shown["step/loss"] == [(line["step"], pytest.approx(line["loss"])) for line in said]
    assert {"step/text", "step/rate", "step/norm"} <= shown.keys()


def test_without_tensorboard_the_log_has_everything(tmp_path, watcher, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = run_logger.RunLogger(tmp_path, watcher, is_main=True)
    told.begin(-1)
    told.write("step", 1, loss=2.5)
    told.close()
    assert run_logger.lines(tmp_path / "log.jsonl") == [{"kind": "step", "step": 1, "loss": 2.5}]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
