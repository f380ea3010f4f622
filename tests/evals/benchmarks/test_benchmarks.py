"""Every line of the table of benchmarks: it resolves, and runs from its files to a report."""

import json
from dataclasses import replace

import fixtures_segmentation
import fixtures_vqa
import pytest
from asked import Oracle, Recorded

import segue
from segue.checkpoints.random_weights import random_checkpoint
from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import ConfigError
from segue.evals.benchmarks import BENCHMARKS, SCENES, find, of_run
from segue.evals.benchmarks.vqa import WORDS
from segue.evals.run import page, report, runner
from segue.evals.run.evaluation import Evaluation, read_run, units
from segue.geometry.notation import box_text
from segue.types import Answer, Media

FIXTURES = {**fixtures_segmentation.FIXTURES, **fixtures_vqa.FIXTURES}
FILED = sorted(set(BENCHMARKS) - {one.name for one in SCENES})


def told(text, regions=()):
    return Answer(text, regions, text)


def perfect(name):
    """What is right, said as the benchmark wants it."""

    def speak(sample):
        if name in fixtures_segmentation.FIXTURES:
            return fixtures_segmentation.perfect(sample)
        text = sample.messages[-1].text
        return told(f"<answer>{text}</answer>" if "<answer>" in sample.messages[0].text else text)

    return speak


def run(name, data, out, speak):
    """The report of a benchmark over its fixture folder; `speak` gives the answer to each sample."""
    job = Evaluation(benchmark=BENCHMARKS[name], data=data, out=out)
    dataset = job.open_data()
    total = job.count(dataset)
    order = [index for unit in units(dataset, total) for index in unit]
    return reported(job, dataset, Oracle([dataset.get(index, rng_for(0, 0, index)) for index in order], speak))


def reported(job, dataset, model):
    """The report of what a model answers."""
    runner.run(job, dataset, lambda: model, Recorded())
    told = report.RunFolder(out=job.out, benchmark=job.benchmark, total=job.count(dataset))
    made = report.gather(told)
    report.write(told, made)
    page.write(told, made, dataset)
    return made


def test_every_benchmark_with_files_has_a_folder_in_its_layout():
    assert set(FIXTURES) == set(FILED)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_record_names_what_there_is_and_can_be_asked(name, tmp_path):
    record = BENCHMARKS[name]
    assert record.name == name and record.dataset in DATASETS
    assert Evaluation(benchmark=record, data=tmp_path, out=tmp_path).options
    assert find(name) is record and record.protocol


@pytest.mark.parametrize("name", FILED)
def test_right_answers_go_through_the_runner_to_a_better_report_than_none(name, tmp_path, monkeypatch):
    monkeypatch.setattr("segue.evals.metrics.confidence._FEWEST", 3)
    monkeypatch.setattr("segue.evals.metrics.confidence._MOST", 3)
    data = FIXTURES[name](tmp_path / "data")
    best = run(name, data, tmp_path / "best", perfect(name))
    worst = run(name, data, tmp_path / "worst", lambda _: told(""))
    assert best["failed"] == worst["failed"] == best["missing"] == 0 and best["row_set"] == worst["row_set"]
    record = BENCHMARKS[name]
    if record.submit is not None:
        assert any(path.name.startswith(report.SUBMISSION) for path in (tmp_path / "best").iterdir())
    if record.submit is None:
        assert best["headline"] == record.headline
        assert best["figures"][record.headline] > worst["figures"][record.headline]
    assert json.loads((tmp_path / "best" / report.REPORT).read_text()) == best
    assert of_run(read_run(tmp_path / "best")) is record


@pytest.mark.slow
@pytest.mark.parametrize("name", FILED)
def test_the_demo_model_goes_through_every_benchmark(name, tmp_path):
    job = Evaluation(benchmark=BENCHMARKS[name], data=FIXTURES[name](tmp_path / "data"), out=tmp_path / "out")
    dataset, progress = job.open_data(), Recorded()
    model = segue.load("demo")
    runner.run(job, dataset, lambda: model, progress)
    assert progress.steps == [None] * len(dataset)


@pytest.fixture(scope="module")
def qwen_vl(tmp_path_factory):
    folder = random_checkpoint(tmp_path_factory.mktemp("model") / "tiny-qwen-vl", "tiny-qwen-vl")
    return segue.load(folder, device="cpu", dtype="fp32")


@pytest.mark.parametrize(
    "name", {one.protocol: one.name for one in reversed(WORDS) if one.dataset != "video_questions"}.values()
)
def test_a_qwen_vl_goes_through_every_protocol_in_words(name, tmp_path, qwen_vl):
    job = Evaluation(benchmark=BENCHMARKS[name], data=FIXTURES[name](tmp_path / "data"), out=tmp_path / "out")
    made = reported(job, job.open_data(), qwen_vl)
    assert made["failed"] == made["missing"] == 0 and made["headline"] in made["figures"]


@pytest.fixture
def small_scenes(monkeypatch):
    """The scenes' benchmark with two stills and a clip."""
    record = replace(BENCHMARKS["scenes_test"], options={"stills": 2, "clips": 1})
    monkeypatch.setitem(BENCHMARKS, "scenes_test", record)
    return record


def right_of_scene(sample):
    target, text = sample.target, sample.messages[-1].text
    if target["kind"] == "box":
        media = next(part for part in sample.messages[0].parts if isinstance(part, Media))
        return told(box_text(fixtures_segmentation.np.array(target["box"]), media.size))
    if target["kind"] == "region":
        return told(" ".join(words[0] for words in target["words"]))
    return told(text, sample.regions)


def test_right_answers_about_scenes_are_all_right_and_none_all_wrong(tmp_path, small_scenes):
    best = run("scenes_test", tmp_path, tmp_path / "best", right_of_scene)
    assert set(best["figures"].values()) == {1.0} and "video J&F" in best["figures"]
    worst = run("scenes_test", tmp_path, tmp_path / "worst", lambda _: told(""))
    # who finds nothing is right where nothing is
    assert {name for name, value in worst["figures"].items() if value >= 0.5} == {"no-target accuracy"}


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("scenes_tset", {}, "did you mean scenes_test"),
        ("scenes_test", {"split": "val"}, "split are for folders of your own"),
        ("scenes_test", {"protocol": "upstream"}, "has no protocol 'upstream'"),
    ],
)
def test_what_there_is_not_is_told(name, how, message):
    with pytest.raises(ConfigError, match=message):
        find(name, **how)


def test_the_protocol_of_the_original_is_a_record_of_its_own():
    assert find("chartqa_human", protocol="upstream") is BENCHMARKS["chartqa_human_upstream"]
