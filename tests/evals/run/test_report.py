"""Reports: the same rows give the same bytes, and nobody's file names."""

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from asked import Bright, Recorded, write_folder

from segue.errors import DataError
from segue.evals.metrics import own_masks, videos
from segue.evals.run import page, report, runner
from segue.evals.run.evaluation import Evaluation


@pytest.fixture
def make(tmp_path):
    """A run over a folder, with report and page."""

    def make(asked, out="out", damage=None, **how):
        folder = write_folder(tmp_path / "mine")
        if damage:
            (folder / "test/images" / damage).write_bytes(b"damaged")
        benchmark = replace(own_masks.benchmark("test", phrase="square"), published={"Paper": 0.5})
        job = Evaluation(benchmark=benchmark, data=folder, out=tmp_path / out)
        dataset = job.open_data()
        runner.run(job, dataset, lambda: asked, Recorded())
        run = report.RunFolder(out=job.out, benchmark=benchmark, total=job.count(dataset), **how)
        made = report.gather(run)
        report.write(run, made)
        page.write(run, made, dataset)
        return run, made

    return make


class Page(HTMLParser):
    """What a page shows: its words, and the sources of its pictures."""

    def __init__(self, text):
        super().__init__()
        self.words, self.pictures, self.links = [], [], []
        self.feed(text)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag == "img":
            self.pictures.append(named["src"])
        self.links += [value for name, value in attrs if name in ("href", "src") and not value.startswith("data:")]


def test_rows_that_count_for_no_figure_are_told(make):
    run, _ = make(Bright())
    kinds = replace(run.benchmark, reduce=videos.reduce_kinds(long=0, short=1))
    with pytest.raises(DataError, match="counts for a figure of own_masks: their annotations do not say"):
        report.gather(replace(run, benchmark=kinds))


def test_a_report_says_how_its_figures_came_about(make):
    _, made = make(Bright())
    assert made["figures"]["dice"] == made["figures"]["cl_dice"] == 1.0 and made["figures"]["hd95"] == 0.0
    assert made["intervals"]["dice"][:2] == [1.0, 1.0]
    assert made["model"] == {"model": "bright", "model_hash": "bright-100", "dtype": "float32"}
    assert (made["n"], made["groups"], made["failed"], made["missing"]) == (6, 3, 0, 0)
    assert made["protocol"] == "own-masks/1" and made["settings"]["threshold"] == 0.5
    assert made["asked"]["prompt"] == "\nPlease segment square in this image."


def test_files_are_the_same_whenever_they_are_made_timings_apart(make):
    first, _ = make(Bright(), "a")
    second, _ = make(Bright(), "b")
    for name in (report.REPORT, report.MARKDOWN, report.TABLE, page.PAGE):
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes()
    assert json.loads((first.out / report.TIMINGS).read_text())["asking_seconds"] >= 0


def test_names_of_files_are_not_told_unless_asked_for(make):
    run, made = make(Bright(), damage="patient1/2.png")
    texts = "".join((run.out / name).read_text() for name in ("report.json", "report.md", "rows.csv", "report.html"))
    assert "patient" not in texts and "2.png" not in texts
    assert made["failures"] == [{"id": "row 2", "kind": "MediaError", "error": "MediaError; rows.jsonl says more"}]
    told, made = make(Bright(), "told", damage="patient1/2.png", show_names=True)
    assert "patient1" in (told.out / "rows.csv").read_text() and "2.png" in made["failures"][0]["error"]


def test_the_table_has_a_line_for_each_row(make):
    run, _ = make(Bright(level=250))
    lines = list(csv.DictReader((run.out / report.TABLE).read_text().splitlines()))
    assert [line["id"] for line in lines] == [f"row {number}" for number in range(6)]
    assert {line["dice"] for line in lines} == {"0.0"} and {line["precision"] for line in lines} == {""}
    assert len({line["group"] for line in lines}) == 3


def test_a_page_needs_nothing_beside_it_and_shows_the_best_and_the_worst(make):
    run, _ = make(Bright())
    shown = Page((run.out / page.PAGE).read_text())
    assert shown.links == [] and len(shown.pictures) == 6
    assert all(one.startswith("data:image/jpeg;base64,") for one in shown.pictures)
    text = " ".join(shown.words)
    assert "Worst rows" in text and "threshold" in text and "Paper" in text and "bright-100" in text


def test_rows_are_ranked_by_the_headline_of_each(make):
    run, _ = make(Bright())
    assert [value for value, _ in page.ranked(run)] == [1.0] * 6


def test_a_threshold_is_chosen_from_a_report(make):
    _, made = make(Bright())
    assert made["figures"]["dice@0.3"] == 1.0 and own_masks.best_threshold(made["figures"]) == 0.5
    assert not any(line[-1] for line in report.threshold_lines(made)), "all are alike"
    made["figures"]["dice@0.3"] = 0.5
    headings, *lines = report.threshold_lines(made)
    assert headings == ("threshold", "dice", "iou", "precision", "recall", "")
    assert [line[0] for line in lines if line[-1] == "best dice"] == ["0.5"]
    assert not any("@" in name for name, *_ in report.figure_lines(made))


def test_figures_and_their_bounds_have_as_many_decimals(make):
    _, made = make(Bright())
    made["figures"] |= {"hd95": 50.0, "dice": 0.25}
    made["intervals"] = {"hd95": [0.0, 100.0, 1000], "dice": [0.0, 0.5, 1000]}
    lines = {name: (value, bounds) for name, value, bounds in report.figure_lines(made)}
    assert lines["hd95"] == ("50.00", "0.00 to 100.00") and lines["dice"] == ("0.2500", "0.0000 to 0.5000")
    assert report.told(made | {"intervals": {}})["95% intervals"].startswith("none")


def test_what_people_wrote_means_nothing_in_the_markdown(make):
    _, made = make(Bright())
    made["failures"] = [{"id": "<b>a|b</b>", "kind": "x", "error": "[x](http://a)\n# y"}]
    assert "| \\<b\\>a\\|b\\</b\\> | \\[x\\](http://a)\\n\\# y |" in report.markdown(made)


def test_a_run_without_answers_has_no_report(make, monkeypatch):
    with pytest.raises(DataError, match="no row that was answered"):
        make(Bright(broken=("square",)))


def test_a_report_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / report.REPORT).write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        report.read(tmp_path)
