"""Several processes on one run."""

import pytest
from asked import Watcher, write_folder

from segue.errors import CheckpointError
from segue.evals.run import report, runner
from segue.evals.run.workers import Order, run_workers


@pytest.mark.slow
def test_two_processes_make_the_report_of_one(tmp_path, official_folder):
    folder = write_folder(tmp_path / "mine")
    own, scored = {"split": "test", "phrase": "square"}, []
    for workers in (1, 2):
        order = Order(model=str(official_folder), on=str(folder), data=folder, out=tmp_path / f"{workers}", own=own)
        watcher, job = Watcher(), order.job()
        if workers == 1:
            runner.run(job, runner.open_data(job), order.load, watcher)
        else:
            run_workers(order, workers, watcher)
        assert watcher.steps == [None] * 6
        scored.append(report.Run(out=job.out, benchmark=job.benchmark, total=6).scored())
    assert scored[0] == scored[1]


@pytest.mark.slow
def test_what_stops_a_worker_stops_the_run(tmp_path):
    folder = write_folder(tmp_path / "mine")
    order = Order(model="nothing/", on=str(folder), data=folder, out=tmp_path / "out", own={"phrase": "square"})
    with pytest.raises(CheckpointError, match="there is no folder"):
        run_workers(order, 2, Watcher())
