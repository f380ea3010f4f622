"""The same figures for people, for programs and for TensorBoard."""

import itertools
import sys

import pytest

from segue.train import loop, run_logger
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


def test_seconds_are_those_of_a_step_also_where_the_last_line_stands_for_fewer(make_recipe, watcher, monkeypatch):
    ticks = itertools.count(step=6)
    monkeypatch.setattr(loop, "perf_counter", lambda: next(ticks))
    recipe = make_recipe(stage={"steps": 3}, log_every=2)
    train(recipe, watcher, device="cpu")
    assert run_logger.lines(recipe.output / "log.jsonl")[-1]["seconds"] == 6.0


def test_a_log_that_a_kill_has_torn_is_gone_on_with_and_a_stage_tells_itself_once(tmp_path, watcher):
    told = run_logger.RunLogger(tmp_path, watcher, is_main=True)
    told.begin(-1)
    told.write("stage", 0, text="one")
    told.write("step", 1, text="a\u2028b \udcff")  # of a folder's name that is no UTF-8
    told.write("stage", 1, text="two")
    with told._path.open("ab") as stream:
        stream.write('{"kind": "step", "step": 2, "text": "血'.encode()[:-1])
    told.begin(1)
    told.close()
    assert [(line["kind"], line["text"]) for line in run_logger.lines(told._path)] == [
        ("stage", "one"),
        ("step", "a\u2028b \udcff"),
    ]


@pytest.mark.parametrize(
    "line",
    ["3", "[]", '{"kind": "step"}', '{"step": 1}', '{"kind": "step", "step": "1"}', '{"kind": "stage", "step": 0}'],
)
def test_a_line_that_a_disk_has_damaged_is_told_and_left_out(tmp_path, watcher, caplog, line):
    (tmp_path / "log.jsonl").write_text(f'{line}\n{{"kind": "step", "step": 1}}\n')
    told = run_logger.RunLogger(tmp_path, watcher, is_main=True)
    told.begin(1)
    told.close()
    assert "has a damaged line" in caplog.text
    assert run_logger.lines(told._path) == [{"kind": "step", "step": 1}]


def test_without_tensorboard_the_log_has_everything(tmp_path, watcher, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = run_logger.RunLogger(tmp_path, watcher, is_main=True)
    told.begin(-1)
    told.write("step", 1, loss=2.5)
    told.close()
    assert run_logger.lines(tmp_path / "log.jsonl") == [{"kind": "step", "step": 1, "loss": 2.5}]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
