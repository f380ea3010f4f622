"""Several processes on one run."""

import pytest
from asked import Recorded, write_folder

from segue.errors import CheckpointError
from segue.evals.run import report, runner
from segue.evals.run.workers import EvaluationSpec, run_workers


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
            run_workers(spec, job.open_data(), workers, progress)
        assert progress.steps == [None] * 6
        scored.append(report.RunFolder(out=job.out, benchmark=job.benchmark, total=6).scored())
    assert scored[0] == scored[1]


@pytest.mark.slow
def test_what_stops_a_worker_stops_the_run(tmp_path):
    folder = write_folder(tmp_path / "mine")
    spec = EvaluationSpec(model="nothing/", on=str(folder), data=folder, out=tmp_path / "out", own={"phrase": "square"})
    with pytest.raises(CheckpointError, match="there is no folder"):
        run_workers(spec, spec.evaluation().open_data(), 2, Recorded())
