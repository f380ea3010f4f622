"""Confidence in figures, and in differences between two runs."""

import json

import numpy as np
import pytest
from asked import Bright, Recorded, write_folder

from segue.errors import ConfigError, DataError
from segue.evals.metrics import own_masks
from segue.evals.metrics.confidence import draws, intervals
from segue.evals.run import compare, report, runner
from segue.evals.run.evaluation import Evaluation

GROUPS = 300


def mean(rows):
    if not rows:
        raise DataError("no rows")
    return {"accuracy": 100 * float(np.mean([row["correct"] for row in rows]))}


def rows(correct):
    return [
        {"id": str(number), "group": f"g{number // 4}", "correct": float(value)} for number, value in enumerate(correct)
    ]


@pytest.fixture
def planted():
    """Two runs over 1,200 rows: the second like the first, but for `better` rows that it alone gets right, and
    `noise` rows on which either is right by luck.
    """

    def plant(better=0, noise=0):
        rng = np.random.default_rng(5)
        first = rng.uniform(size=4 * GROUPS) < 0.6
        second = first.copy()
        changed = rng.permutation(4 * GROUPS)
        lucky, won = changed[:noise], [place for place in changed[noise:] if not first[place]][:better]
        second[lucky[::2]], first[lucky[::2]] = True, False
        second[lucky[1::2]], first[lucky[1::2]] = False, True
        second[won] = True
        return rows(first), rows(second)

    return plant


def test_three_points_are_found_and_are_no_luck(planted):
    (found,) = compare.differences(*planted(better=36, noise=60), mean)
    assert found.difference == pytest.approx(3.0)
    assert found.is_significant and 0 < found.low < 3 < found.high


def test_noise_is_taken_for_noise(planted):
    (found,) = compare.differences(*planted(noise=100), mean)
    assert abs(found.difference) < 1e-9 and not found.is_significant and found.p > 0.5


@pytest.mark.parametrize(("groups", "least"), [(2, 0.5), (5, 0.0625), (12, 0.0)])
def test_few_groups_prove_little(groups, least):
    (found,) = compare.differences(rows([False] * 4 * groups), rows([True] * 4 * groups), mean)
    assert least <= found.p < max(2 * least, 0.01) and found.is_significant == (groups > 5)


def test_a_run_does_not_differ_from_itself(planted):
    first, _ = planted()
    (found,) = compare.differences(first, first, mean)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_difference_the_other_way_is_as_significant(planted):
    first, second = planted(better=36, noise=60)
    (there,), (back,) = compare.differences(first, second, mean), compare.differences(second, first, mean)
    assert back.difference == -there.difference and back.is_significant
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_other_rows_and_a_single_group_are_refused(planted):
    first, second = planted()
    with pytest.raises(DataError, match="do not have the same rows"):
        compare.differences(first, second[:-1], mean)
    alone = [{**row, "group": "one"} for row in first]
    with pytest.raises(DataError, match="all rows are of one group"):
        compare.differences(alone, alone, mean)


def test_an_interval_holds_the_figure_and_narrows_with_more_groups(planted):
    first, _ = planted()
    wide, narrow = (intervals(first[:count], mean)["accuracy"] for count in (80, 1200))
    assert narrow.low < mean(first)["accuracy"] < narrow.high
    assert narrow.high - narrow.low < wide.high - wide.low
    assert narrow == intervals(first[::-1], mean)["accuracy"]


def test_rows_of_one_group_count_as_one_draw():
    """Of ten groups of one hundred equal rows each there are ten opinions, not a thousand."""
    several = [{"id": str(n), "group": str(n // 100), "correct": float(n // 100 % 2)} for n in range(1000)]
    alone = [{**row, "group": row["id"]} for row in several]
    wide, narrow = intervals(several, mean)["accuracy"], intervals(alone, mean)["accuracy"]
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_a_group_that_is_drawn_twice_counts_as_two():
    names = []

    def reduce(rows):
        names.append({row["group"] for row in rows})
        return {"groups": float(len({row["group"] for row in rows}))}

    found = intervals([{"id": str(n), "group": str(n)} for n in range(5)], reduce)
    assert (found["groups"].low, found["groups"].high) == (5.0, 5.0)


def test_one_group_has_no_interval_and_more_rows_have_fewer_draws():
    assert intervals([{"id": "a", "group": "g", "correct": 1.0}], mean) == {}
    assert len(draws(10, 100)) == 2000 and len(draws(10, 5000)) == 400 and len(draws(10, 10**6)) == 200


@pytest.fixture
def two_runs(tmp_path):
    """Two runs over the same folder, the second of a model that finds less."""

    def make(first, second, **jobs):
        folder = write_folder(tmp_path / "mine")
        record = own_masks.benchmark("test", phrase="square")
        outs = []
        for name, asked in (("a", first), ("b", second)):
            changed = {"benchmark": record, "data": folder, "out": tmp_path / name, **jobs.get(name, {})}
            job = Evaluation(**changed)
            dataset = job.open_data()
            runner.run(job, dataset, lambda asked=asked: asked, Recorded())
            run = report.RunFolder(out=job.out, benchmark=job.benchmark, total=job.count(dataset))
            report.write(run, report.gather(run))
            outs.append(job.out)
        return *outs, record

    return make


def test_the_headline_comes_first(two_runs):
    found = compare.compare(*two_runs(Bright(), Bright(level=250)))
    assert (found[0].figure, found[0].first, found[0].second) == ("dice", 1.0, 0.0)
    assert found[0].p == 0.25 and json.dumps(compare.as_json(found)), "three groups"


@pytest.mark.parametrize(
    ("change", "what"),
    [({"limit": 4}, "different rows"), ({"settings": {"keep_logits": False}}, "different protocols")],
)
def test_runs_of_other_rows_or_protocols_are_refused(two_runs, change, what):
    first, second, record = two_runs(Bright(), Bright(level=250), b=change)
    with pytest.raises(ConfigError, match=what):
        compare.compare(first, second, record)


def test_one_model_under_two_names_is_refused_unless_asked_in_another_way(two_runs):
    first, second, record = two_runs(Bright(), Bright())
    with pytest.raises(ConfigError, match="the same weights"):
        compare.compare(first, second, record)


def test_one_model_asked_in_two_ways_can_be_compared(two_runs):
    first, second, record = two_runs(Bright(), Bright(), b={"settings": {"max_tiles": 3}})
    assert compare.compare(first, second, record)[0].difference == 0


def test_a_folder_without_a_report_is_refused(two_runs, tmp_path):
    first, _, record = two_runs(Bright(), Bright())
    with pytest.raises(DataError, match="cannot be read"):
        compare.compare(first, tmp_path, record)
