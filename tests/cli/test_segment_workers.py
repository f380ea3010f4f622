"""`segue segment --workers`: several processes give what one gives, and none is left behind."""

import os
from functools import partial

import pytest
from fake_engine import Engine
from pictures import content, make_image

from segue.cli import options
from segue.cli.segment import run
from segue.errors import CheckpointError, SegueError
from segue.jobs.run import BatchJob


def load():
    return partial(Engine().stream_segment, phrases=["bright"])


def no_model():
    raise CheckpointError("there is no such model")


@pytest.fixture
def photos(tmp_path):
    """Five pictures and a letter among them."""
    for number in range(5):
        make_image(tmp_path / f"{number}.png", shift=3 * number)
    (tmp_path / "2.png").write_text("I am a letter, not a picture.")
    return [tmp_path / f"{number}.png" for number in range(5)]


def job(out):
    return BatchJob(out=out, formats=("png", "coco", "overlay"), settings={"phrases": ["bright"]})


def test_several_processes_write_what_one_writes_and_go_on_where_it_stopped(photos, tmp_path):
    run(photos, job(tmp_path / "one"), load)
    run(photos[:2], job(tmp_path / "two"), load)
    tally = run(photos, job(tmp_path / "two"), load, 2)
    assert (tally.done, tally.skipped, tally.failed) == (2, 2, 1)
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize(
    ("begin", "words"),
    [(partial(os._exit, 3), "a worker process died.*`if __name__ == '__main__':`"), (no_model, "no such")],
)
def test_what_ends_a_worker_ends_the_run_in_one_line(photos, tmp_path, begin, words):
    with pytest.raises(SegueError, match=words):
        run(photos, job(tmp_path / "out"), begin, 2)


@pytest.mark.parametrize(
    ("given", "inputs", "model", "device", "workers"),
    [
        (None, 1000, "demo", "cpu", 4),
        (None, 17, "demo", "cpu", 2),
        (None, 9, "demo", "cpu", 1),
        (None, 1000, "demo", "cuda", 1),
        (None, 1000, "a/hub-id", "cpu", 1),
        (3, 1, "demo", "cuda", 3),
    ],
)
def test_processes_are_as_many_as_are_worth_it(monkeypatch, given, inputs, model, device, workers):
    monkeypatch.setattr(options, "cores", lambda: 4)
    assert options.chosen_workers(given, lambda: inputs, model, device) == workers
