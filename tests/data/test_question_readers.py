"""Readers of questions: whatever stands in the place of a part of their files, the answer is an error of the data."""

import copy
import csv
import json
import pickle

import fixtures_vqa
import layouts
import pytest
from fixtures_vqa import FIXTURES
from test_malformed import changed, places

from segue.data import seed_bench, subtitles, tables
from segue.data.annotation_io import find_file
from segue.data.base import rng_for
from segue.data.questions import filled, lettered
from segue.datasets import DATASETS
from segue.errors import DataError, MediaError, SegueError
from segue.evals.benchmarks.vqa import WORDS

RECORDS = {one.name: one for one in WORDS}
JUNK = (None, 3, -1, 1e400, "x", {}, [[1]], True)
CELLS = ("", "x", "-1", "['a'", "[1]", "[" * 500, "9" * 30, "a\tb\nc", "\u2028")
FILES = {
    "vqav2_val": "data/vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
    "okvqa_val": "data/okvqa/mscoco_val2014_annotations.json",
    "textvqa_val": "data/textvqa/TextVQA_0.5.1_val.json",
    "vizwiz_val": "data/vizwiz/Annotations/val.json",
    "docvqa_val": "data/docvqa/val/val_v1.0.json",
    "gqa_testdev": "data/gqa/testdev_balanced.jsonl",
    "ocrvqa_val": "data/ocrvqa/ocrvqa_val.jsonl",
    "scienceqa_test": "data/scienceqa/scienceqa_test_img.jsonl",
    "seed_bench_all": "data/seed_bench/SEED-Bench.json",
    "refcoco_box_val": "data/refcoco/refcoco_val.jsonl",
    "flickr30k_test": "data/flickr30k/flickr30k_karpathy_test.json",
    "video_holmes": "long_video/Video-Holmes/test_Video-Holmes.json",
    "mlvu_choice": "long_video/MLVU/json/4_count.json",
    "mlvu_open": "long_video/MLVU/json/8_sub_scene.json",
    "longvideobench": "long_video/LongVideoBench/lvb_val.json",
}
TABLES = {
    "mmbench_dev": "data/mmbench/mmbench_dev_20230712/mmbench_dev_20230712.tsv",
    "touchstone_en": "data/touchstone/touchstone_20230831.tsv",
    "video_mme": "long_video/Video-MME/Video-MME.tsv",
    "tempcompass": "long_video/TempCompass/TempCompass_MCQ.tsv",
    "video_mmmu": "long_video/VideoMMMU/VideoMMMU.tsv",
    "mmbench_video": "long_video/MMBench-Video/MMBench-Video.tsv",
}


def read_all(root, record):
    """Every row, and the medium that is named for it."""
    dataset = DATASETS[record.dataset](root, record.split, **record.options)
    for row in range(len(dataset)):
        dataset.medium_of(row)
        dataset.get(row, rng_for(0, 0, row))


def crash(root, record):
    """What went wrong, if it was anything but an error of the data."""
    try:
        read_all(root, record)
    except SegueError:
        return None
    except Exception as error:  # noqa: BLE001  what it is, is what we want to see
        return repr(error)
    return None


def read_json(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def write_json(path, content):
    text = json.dumps(content) if path.suffix == ".json" else "".join(json.dumps(line) + "\n" for line in content)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_wrong_parts_of_records_are_told(name, tmp_path):
    record, path = RECORDS[name], FIXTURES[name](tmp_path) / FILES[name]
    content = read_json(path)
    found = []
    for place in places(content):
        if any(isinstance(key, int) and key > 0 for key in place[:-1]):
            continue  # all rows are alike
        for value in JUNK:
            write_json(path, changed(content, place, value))
            found += [(place, value, error) for error in [crash(tmp_path, record)] if error]
    assert found == []


@pytest.mark.parametrize("name", TABLES)
def test_wrong_cells_of_tables_are_told(name, tmp_path):
    record, path = RECORDS[name], FIXTURES[name](tmp_path) / TABLES[name]
    rows = tables.read_table(path)
    found = []
    for column in rows[0]:
        for cell in CELLS:
            wrong = copy.deepcopy(rows)
            wrong[0][column] = cell
            fixtures_vqa.write_table(path, wrong)
            found += [(column, cell, error) for error in [crash(tmp_path, record)] if error]
        fixtures_vqa.write_table(path, [{name: cell for name, cell in row.items() if name != column} for row in rows])
        found += [(column, "missing", error) for error in [crash(tmp_path, record)] if error]
    assert found == []


@pytest.mark.parametrize("content", [b"", b"\x00", b"{", b"\xff\xfe", b"[1, 2]", b'{"questions": 3}', b"a\tb\n1\n"])
@pytest.mark.parametrize("name", [*FILES, *TABLES])
def test_files_of_another_form_are_told(name, content, tmp_path):
    record, path = RECORDS[name], FIXTURES[name](tmp_path) / (FILES | TABLES)[name]
    path.write_bytes(content)
    assert crash(tmp_path, record) is None


@pytest.mark.parametrize("name", ["mme", "video_mme_subtitles"])
def test_texts_of_another_form_are_told(name, tmp_path):
    root = FIXTURES[name](tmp_path)
    path = next(path for path in sorted(root.rglob("*")) if path.suffix in (".txt", ".srt"))
    for content in (b"", b"Is it?", b"Is it?\tPerhaps\n", b"\xff", b"\tYes\n", b"1\n00:00:01 --> x\n"):
        path.write_bytes(content)
        assert crash(tmp_path, RECORDS[name]) is None


def test_a_picture_outside_the_data_is_never_opened(tmp_path):
    fixtures_vqa.lines(tmp_path, "data/gqa/testdev_balanced.jsonl", "left")
    path = tmp_path / "data/gqa/testdev_balanced.jsonl"
    row = json.loads(path.read_text())
    for image in ("../secret.png", str(tmp_path / "data/gqa/images/0.jpg")):
        fixtures_vqa.write_lines(path, [row | {"image": image}])
        with pytest.raises(SegueError, match="outside the data's folders"):
            read_all(tmp_path, RECORDS["gqa_testdev"])


def test_a_table_keeps_tabs_and_line_breaks_and_long_cells(tmp_path):
    cell = 'a\tb\r\n\u2028"c"' + "x" * 300_000
    path = fixtures_vqa.write_table(tmp_path / "t.tsv", [{"one": cell, "two": ""}])
    before = csv.field_size_limit()
    assert tables.read_table(path) == [{"one": cell, "two": ""}]
    assert csv.field_size_limit() == before
    path.write_text("one\ttwo\nx\n")
    with pytest.raises(DataError, match="row 2 has 1 cells where the header has 2"):
        tables.read_table(path)
    path.write_text("one\ttwo\n\nx\t\n\n")
    assert tables.read_table(path) == [{"one": "x", "two": ""}]


def test_a_name_that_is_none_is_never_a_folder_of_frames(tmp_path):
    layouts.write_image(tmp_path / "00001.jpg")
    for name in ("", "."):
        with pytest.raises(MediaError, match="expected a path"):
            find_file([tmp_path], name)


def test_a_wrong_answer_of_a_row_is_an_error_of_the_data_that_may_be_skipped(tmp_path):
    path = FIXTURES["seed_bench_image"](tmp_path) / "data/seed_bench/SEED-Bench.json"
    content = read_json(path)
    content["questions"][0]["answer"] = "E"
    write_json(path, content)
    with pytest.raises(DataError, match="row 0: the row has answer = 'E'; expected one of A, B, C, D"):
        read_all(tmp_path, RECORDS["seed_bench_image"])


@pytest.mark.parametrize("answers", [None, []])
@pytest.mark.parametrize(("name", "key"), [("okvqa_val", "annotations"), ("docvqa_val", "data")])
def test_a_question_without_answers_is_an_error_of_its_row(name, key, answers, tmp_path):
    path = FIXTURES[name](tmp_path) / FILES[name]
    content = read_json(path)
    content[key][1]["answers"] = answers
    write_json(path, content)
    with pytest.raises(DataError, match=r"row 1: question \d+ of .* has no answers, so that nothing can be scored"):
        read_all(tmp_path, RECORDS[name])


def test_a_training_question_without_answers_is_no_example(tmp_path):
    path = FIXTURES["okvqa_val_4shot"](tmp_path) / "data/okvqa/mscoco_train2014_annotations.json"
    content = read_json(path)
    content["annotations"][3]["answers"] = []
    write_json(path, content)
    record = RECORDS["okvqa_val_4shot"]
    dataset = DATASETS[record.dataset](tmp_path, record.split, **record.options)
    shown = [part for part in dataset.get(0, rng_for(0, 0, 0)).messages[0].parts if isinstance(part, str)]
    assert len(shown) == 5 and not any(part.endswith("Answer: ") for part in shown)


def test_a_rotation_without_an_answer_is_an_error_of_its_row(tmp_path):
    path = FIXTURES["mmbench_dev"](tmp_path) / TABLES["mmbench_dev"]
    rows = tables.read_table(path)
    fixtures_vqa.write_table(path, [rows[0], rows[1] | {"answer": ""}, *rows[2:]])
    with pytest.raises(DataError, match="row 1: the row 1000003 has no answer, so that nothing can be scored"):
        read_all(tmp_path, RECORDS["mmbench_dev"])


@pytest.mark.parametrize("text", ["['a', \"b's\"]", '["a", "b\'s"]'])
def test_lists_are_read_as_json_or_as_python_writes_them(text):
    assert tables.listed(text, "it") == ["a", "b's"]


@pytest.mark.parametrize("text", ["", "3", "{'a': 1}", "__import__('os')", "[" * 9999])
def test_what_is_no_list_is_told_and_never_run(text):
    with pytest.raises(DataError, match="expected a list"):
        tables.listed(text, "it")


def test_words_with_braces_are_not_taken_for_blanks():
    assert filled("{a} and {b} {c}", a="{b}", b="x") == "{b} and x {c}"
    with pytest.raises(DataError, match="has no {d}"):
        filled("{a}", d="x")


def test_more_options_than_letters_are_told():
    assert lettered(["x", "y"], "({letter}) {option}") == "(A) x\n(B) y"
    for count in (0, 27):
        with pytest.raises(DataError, match=f"{count} options"):
            lettered(["x"] * count)


@pytest.mark.parametrize(
    ("length", "places"),
    [(100, [12, 37, 62, 86]), (8, [0, 2, 4, 5]), (4, [0, 1, 2, 2]), (3, [0, 1, 2]), (1, [0]), (0, [0]), (-2, [0])],
)
def test_frames_are_spread_over_a_segment_as_the_original_does(length, places):
    assert seed_bench.spread(length, 4) == places


def test_subtitles_have_a_beginning_and_an_end(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes(
        b"\xef\xbb\xbf1\r\n00:00:01,000 --> 00:00:02.500\r\nOne\r\ntwo\r\n\r\n2\n01:00:00,5 --> 01:00:01,0\n\n"
    )
    lines = subtitles.read(path)
    assert [(line.start, line.end, line.text) for line in lines] == [(1.0, 2.5, "One two"), (3600.5, 3601.0, "")]
    assert subtitles.said_at(lines, [1.0, 1.5, 2.4, 3601.0]) == ["One two", "One two"]
    path.write_text("")
    assert subtitles.read(path) == []


def boxed_refcoco(root):
    """The published form, with the boxes that COCO's file has beside the outlines."""
    layouts.refcoco(root, pickled=False)
    path = root / "ref_seg/refcoco/instances.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [10.0, 5.0, 20.0, 20.0]
    layouts.write_json(path, content)
    return path


def published_gqa(root):
    rows = {f"20{n}": {"imageId": f"n{n}", "question": f"Question {n}?", "answer": "left"} for n in range(2)}
    for n in range(2):
        layouts.write_image(root / f"data/gqa/images/n{n}.jpg")
    return layouts.write_json(root / "data/gqa/testdev_balanced_questions.json", rows)


def published_chartqa(root):
    rows = [{"imgname": "a.png", "query": f"Question {n}?", "label": "12.5"} for n in range(2)]
    layouts.write_image(root / "data/chartqa/test/png/a.png")
    return layouts.write_json(root / "data/chartqa/test/test_human.json", rows)


def published_ocrvqa(root):
    base = {"questions": ["Who?", "When?"], "answers": ["A. Smith", "1999"]}
    rows = {name: {**base, "imageURL": "https://x/y.jpg", "split": split} for name, split in (("0001", 3), ("0002", 2))}
    layouts.write_image(root / "data/ocrvqa/images/0001.jpg")
    return layouts.write_json(root / "data/ocrvqa/dataset.json", rows)


def published_scienceqa(root):
    base = {"question": "Which?", "choices": ["oak", "pine"], "answer": 1, "hint": "", "split": "test"}
    rows = {
        "7": {**base, "image": "image.png"},
        "8": {**base, "image": None},
        "9": {**base, "split": "val", "image": "x"},
    }
    layouts.write_image(root / "data/scienceqa/images/test/7/image.png")
    return layouts.write_json(root / "data/scienceqa/problems.json", rows)


PUBLISHED = {
    "refcoco_box_val": (boxed_refcoco, 2, "(166,125),(500,624)</box>"),
    "gqa_testdev": (published_gqa, 2, "left"),
    "chartqa_human": (published_chartqa, 2, "12.5"),
    "ocrvqa_test": (published_ocrvqa, 2, "A. Smith"),
    "scienceqa_test": (published_scienceqa, 1, "B"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_form_serves_where_the_converted_one_is_missing(name, tmp_path):
    write, count, answer = PUBLISHED[name]
    path, record = write(tmp_path), RECORDS[name]
    dataset = DATASETS[record.dataset](tmp_path, record.split, **record.options)
    assert len(dataset) == count
    assert dataset.get(0, rng_for(0, 0, 0)).messages[-1].text == answer
    content, found = json.loads(path.read_text()), []
    for place in places(content):
        if len(place) < 5:
            for value in (None, 3, "x", [[1]]):
                write_json(path, changed(content, place, value))
                found += [(place, value, error) for error in [crash(tmp_path, record)] if error]
    assert found == []


def plain(sample):
    """A sample without pixels, which cannot be compared."""
    parts = [part if isinstance(part, str) else (part.name, part.size) for part in sample.messages[0].parts]
    return sample.id, parts, sample.messages[1:], dict(sample.target), sample.frames, sample.group, sample.source


@pytest.mark.parametrize("name", RECORDS)
def test_rows_are_the_same_in_every_process_and_leave_nothing_to_chance(name, tmp_path):
    record = RECORDS[name]
    dataset = DATASETS[record.dataset](FIXTURES[name](tmp_path), record.split, **record.options)
    again = pickle.loads(pickle.dumps(dataset))
    for row in range(len(dataset)):
        sample = dataset.get(row, rng_for(0, 0, row))
        assert plain(again.get(row, rng_for(9, 9, 9))) == plain(sample)
        assert sample.group and sample.source and sample.frames
        assert json.loads(json.dumps(dict(sample.target))) == sample.target
    with pytest.raises(IndexError):
        dataset.get(len(dataset), rng_for(0, 0, 0))
