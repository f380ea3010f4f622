"""What benchmarks lack below a data root: told from the files that their records name, and from those alone."""

import re
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from segue.errors import DataError
from segue.evals.base import Benchmark
from segue.evals.benchmarks import BENCHMARKS, layouts
from segue.evals.benchmarks.layouts import close_names, missing, survey

VIDEO = "video_datas/clips/valid_u"


def record(name="clips_val", files=(f"{VIDEO}/meta_expressions.json", f"{VIDEO}/JPEGImages/*/*.jpg"), **fields):
    return Benchmark(
        **{"dataset": "scenes", "split": "test", **fields},
        name=name,
        task="segment",
        score=lambda sample, answer: {},
        reduce=lambda rows: {},
        headline="j",
        protocol="test/1",
        files=files,
    )


@pytest.fixture
def put(tmp_path):
    """Makes files of some content below a root; a path that ends in / is a folder."""

    def write(*paths, content="{}"):
        for path in paths:
            place = tmp_path / "root" / path
            (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            if not path.endswith("/"):
                place.write_text(content)
        return tmp_path / "root"

    return write


def told(findings):
    return [(one.expected, one.found) for one in findings]


def test_a_benchmark_whose_files_are_all_there_lacks_nothing(put):
    root = put(f"{VIDEO}/meta_expressions.json", f"{VIDEO}/JPEGImages/a/0.jpg")
    assert missing(record(), root) == []
    assert missing(record(files=()), root) == []


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ([f"{VIDEO}/meta_expression.json"], f"{VIDEO}/meta_expression.json"),
        ([f"{VIDEO}/Meta-Expressions.JSON"], f"{VIDEO}/Meta-Expressions.JSON"),
        (["video_data/clips/valid_u/meta_expressions.json"], "video_data/clips/valid_u/meta_expressions.json"),
        ([f"{VIDEO}/meta_expressions.tar.gz"], ""),
        ([f"{VIDEO}/"], ""),
        (["video_datas/clips/valid/meta_expressions.json"], ""),
        ([], ""),
    ],
)
def test_a_file_that_is_not_there_is_told_with_the_nearest_name(put, paths, found):
    root = put("other/", *paths)
    (finding,) = missing(record(files=(f"{VIDEO}/meta_expressions.json",)), root, known={"valid"})
    assert told([finding]) == [(f"{VIDEO}/meta_expressions.json", found)] and not finding.is_empty
    assert f"there is no {VIDEO}/meta_expressions.json" in finding.text
    assert (f"the nearest name is {found}: rename or link it" in finding.text) == bool(found)


def test_an_empty_file_or_folder_is_not_enough(put):
    root = put("a/JPEGImages/")
    put("a/b.json", content="")
    found = missing(record(files=("a/b.json", "a/JPEGImages")), root)
    assert told(found) == [("a/b.json", "a/b.json"), ("a/JPEGImages", "a/JPEGImages")]
    assert all(one.is_empty and "is empty; copy or unpack it again" in one.text for one in found)


def test_patterns_match_parts_of_names_and_any_folders(put):
    root = put("a/refs(unc).p", "a/x/y/val.json", "a/frames/1/0.png")
    assert missing(record(files=("a/refs(*).p", "a/**/val.json", "**/refs(unc).p", "a/frames/*/*.png")), root) == []
    others = ("a/*.tsv", "a/**/test.json", "a/frames/*/*.jpg", "a/frames/[2-7]*")
    assert told(missing(record(files=others), root)) == [(path, "") for path in others]


def test_one_of_several_ways_is_enough_and_the_nearest_is_told_of(put):
    either = record(files=("a/refs.p | a/refs.json",))
    assert told(missing(either, put("a/other"))) == [("a/refs.p | a/refs.json", "")]
    assert missing(either, put("a/other"))[0].text == "there is no a/refs.p or a/refs.json"
    assert told(missing(either, put("a/Refs.json"))) == [("a/refs.p | a/refs.json", "a/Refs.json")]
    assert missing(either, put("a/refs.json")) == []


@pytest.mark.parametrize(
    ("pattern", "there"),
    [("a/refs(unc).*", "a/Refs(unc).p"), ("a/*.tsv", "a/b.TSV"), ("data/*/0.txt", "mydata/a/0.txt")],
)
def test_a_name_may_nearly_fit_a_pattern(put, pattern, there):
    assert told(missing(record(files=(pattern,)), put(there))) == [(pattern, there)]


@pytest.mark.parametrize(
    ("wanted", "names", "expected"),
    [
        ("meta_expressions.json", ["a.json", "meta_expression.json"], ["meta_expression.json"]),
        ("train2014", ["train2017", "Train2014", "train_2014"], ["Train2014", "train_2014"]),
        ("mask_dict.json", ["mask_dict.pkl", "maskdict.json", "mask_dicts.json"], ["maskdict.json", "mask_dicts.json"]),
        ("valid_u", ["valid"], []),
        ("refcocog", ["refcoco+", "RefCOCO+", "refcocog_"], ["refcocog_"]),
    ],
)
def test_a_slip_is_told_from_another_name(wanted, names, expected):
    assert close_names(wanted, names, known={"valid", "refcoco+"}) == expected


TABLE = (
    record("clips_val"),
    record("clips_val_again"),
    record("faces_a", ("faces/a.json", "coco/train")),
    record("faces_b", ("faces/b.json", "coco/train")),
    record("scenes", ()),
)


def test_a_survey_names_what_is_begun_and_what_is_absent(put):
    found = survey(put("faces/a.json", f"{VIDEO}/meta_expression.json"), TABLE)
    assert [(one.names, one.is_ready, one.is_certain) for one in found.statuses] == [
        (("clips_val", "clips_val_again"), False, False),
        (("faces_a",), False, True),
    ]
    assert found.absent == ("faces_b",) and found.is_certain
    assert told(found.statuses[1].findings) == [("coco/train", "")]


def test_what_belongs_to_another_benchmark_is_not_taken_for_ones_own(put):
    table = [record(name, (f"{name}/valid/expressions.json", f"{name}/valid/frames")) for name in ("mevis", "rvos")]
    found = survey(put("rvos/valid/expressions.json", "rvos/valid/frames/0.jpg"), table)
    assert [one.names for one in found.statuses] == [("rvos",)] and found.absent == ("mevis",)


def test_what_several_benchmarks_share_is_a_sign_of_none(put):
    found = survey(put("coco/train/1.jpg"), TABLE)
    assert found.statuses == () and len(found.absent) == 4
    assert survey(put("faces/b.json"), TABLE).statuses[0].is_ready


def test_rows_are_counted_and_the_first_is_opened(tmp_path):
    assert layouts.rows(record(options={"count": 3}), tmp_path) == 3
    with pytest.raises(DataError, match="clips_val has no rows"):
        layouts.rows(record(options={"count": 0}), tmp_path)


FILED = [one for one in BENCHMARKS.values() if one.files]


@pytest.fixture
def laid_out(put):
    """Makes what a pattern asks for, by its first way."""

    def make(pattern):
        way = re.sub(r"\[(.)[^]]*\]", r"\1", pattern.split(" | ")[0].replace("**/", "")).replace("*", "x")
        last = way.rstrip("/").rsplit("/", 1)[-1]
        return put(way if "." in last else f"{way.rstrip('/')}/x")

    return make


@pytest.mark.parametrize("benchmark", FILED, ids=[one.name for one in FILED])
def test_every_record_is_ready_with_its_files_and_told_about_without_each(benchmark, laid_out, put):
    for pattern in benchmark.files:
        lacking = missing(benchmark, put("other/"))
        assert pattern in [finding.expected for finding in lacking]
        root = laid_out(pattern)
    assert missing(benchmark, root) == []
    assert benchmark.name in [name for one in survey(root, FILED).statuses if one.is_ready for name in one.names]


OFFICIAL = {
    name: make
    for module in ("fixtures_vqa", "fixtures_segmentation")
    if find_spec(module)
    for name, make in import_module(module).FIXTURES.items()
}


@pytest.mark.parametrize("benchmark", FILED, ids=[one.name for one in FILED])
def test_every_official_layout_is_known_and_its_rows_can_be_read(benchmark, tmp_path):
    root = OFFICIAL[benchmark.name](tmp_path)
    found = survey(root, FILED)
    assert benchmark.name in [name for one in found.statuses if one.is_ready for name in one.names]
    assert found.is_certain and layouts.rows(benchmark, root) > 1


@pytest.mark.parametrize("benchmark", FILED, ids=[one.name for one in FILED])
def test_every_record_names_paths_below_the_root(benchmark):
    for pattern in benchmark.files:
        for way in pattern.split(" | "):
            assert not Path(way).is_absolute() and ".." not in Path(way).parts and way == way.strip()


def test_findings_do_not_depend_on_the_order_of_records(put):
    root = put("faces/a.json", f"{VIDEO}/meta_expressions.json")
    forward, backward = survey(root, TABLE), survey(root, TABLE[::-1])
    assert {replace(one, names=tuple(sorted(one.names))) for one in forward.statuses} == {
        replace(one, names=tuple(sorted(one.names))) for one in backward.statuses
    }
