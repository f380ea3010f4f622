"""Several processes on one run."""

import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from asked import Recorded, write_folder

from segue.errors import CheckpointError, DataError
from segue.evals.benchmarks import SCENES
from segue.evals.run import report, runner
from segue.evals.run.evaluation import EvaluationSpec, units
from segue.evals.run.workers import run_workers
from segue.synth import questions


@pytest.mark.slow
def test_two_processes_make_the_report_of_one(tmp_path, official_folder):
    folder = write_folder(tmp_path / "mine")
    own, scored = {"split": "test", "phrase": "square"}, []
    for workers in (1, 2):
        spec = EvaluationSpec(
            model=str(official_folder), on=str(folder), data=folder, out=tmp_path / f"{workers}", own=own
        )
        progress, job = Recorded(), spec.evaluation()
        if workers == 1:
            runner.run(job, job.open_data(), spec.load, progress)
        else:
            run_workers(spec, job.open_data, workers, progress)
        assert progress.steps == [None] * 6
        scored.append(report.RunFolder(out=job.out, benchmark=job.benchmark, total=6).scored())
    assert scored[0] == scored[1]


@pytest.mark.slow
def test_what_stops_a_worker_stops_the_run(tmp_path):
    folder = write_folder(tmp_path / "mine")
    spec = EvaluationSpec(model="nothing/", on=str(folder), data=folder, out=tmp_path / "out", own={"phrase": "square"})
    with pytest.raises(CheckpointError, match="there is no folder"):
        run_workers(spec, spec.evaluation().open_data, 2, Recorded())


def test_processes_start_before_the_data_are_read_and_end_if_they_cannot_be(tmp_path):
    spec = EvaluationSpec(model="demo", on="scenes_test", data=tmp_path, out=tmp_path / "out")

    before = set(active_children())

    def broken():
        assert len(set(active_children()) - before) == 2
        raise DataError("no such data")

    with pytest.raises(DataError, match="no such data"):
        run_workers(spec, broken, 2, Recorded())
    # the pool's own thread waits for them too: whoever comes second is told a little later that they have ended
    for _ in range(600):
        if not set(active_children()) - before:
            return
        time.sleep(0.1)
    pytest.fail("processes go on that nobody waits for")


def test_a_still_or_clip_that_is_drawn_is_one_medium():
    drawn = {"stills": 2, "clips": 1}
    dataset = questions.load(Path(), "test", **drawn)
    assert len(units(dataset, len(dataset))) == sum(drawn.values())
    assert all(set(benchmark.options) == set(drawn) for benchmark in SCENES)
