"""VQA accuracy, and the recorded values of the original's evaluation."""

import json
from pathlib import Path

import pytest

from segue.evals.metrics import vqa
from segue.types import Answer, Sample

RECORDED = json.loads((Path(__file__).parents[2] / "golden/qwen_vl/metrics.json").read_text("utf-8"))


@pytest.mark.parity
@pytest.mark.parametrize("case", RECORDED["vqa_normalise"], ids=lambda case: case["text"])
def test_answers_are_brought_into_the_recorded_form(case):
    assert vqa.without_punctuation(case["text"]) == case["punct"]
    assert vqa.normalised(case["text"]) == case["final"]


@pytest.mark.parity
@pytest.mark.parametrize("case", RECORDED["vqa_score"]["cases"], ids=lambda case: case["pred"])
def test_accuracy_is_the_recorded_one(case):
    assert 100 * vqa.accuracy(case["pred"], case["answers"]) == pytest.approx(case["score"], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("DONT", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("'ow'sat", "'ow's'at"),
        ("y'alll", "y'alll"),
        ("yall'll", "y'all'll"),
        ("lets", "lets"),
        ("somebody'd", "somebodyd"),
        ("a\tthe\nAN", ""),
        ("ten nine zero", "10 9 0"),
        ("a:b", "a:b"),
        ("1,000 a-b", "1000 ab"),
        (".5 and 5.", ".5 and 5"),
        ("." * 40, "." * 8),
        ("", ""),
    ],
)
def test_contractions_numbers_and_marks_as_in_the_official_tables(text, form):
    assert vqa.normalised(text) == form


@pytest.mark.parametrize(("same", "share"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_four_of_ten_people_make_an_answer_right(same, share):
    assert vqa.accuracy("cat", ["cat"] * same + ["dog"] * (10 - same)) == pytest.approx(share)


def test_vqa_references_lose_their_punctuation_only_where_people_differ():
    assert vqa.accuracy("Blue", ["Blue"] * 10) == 0
    assert vqa.accuracy("Blue", ["blue"] * 10) == 1
    assert vqa.accuracy("yes", ["yes!"] * 10) == 0
    assert vqa.accuracy("no yes", ["no, yes"] * 9 + ["no"]) == 1


def test_the_row_keeps_what_the_figures_and_a_submission_need():
    sample = Sample("9", "chat", (), target={"question_id": 9, "answers": ["2"] * 10, "kind": "number"})
    row = vqa.score(sample, Answer(" Two.\n"))
    assert row == {"question_id": 9, "answer": "Two.", "answers": ["2"] * 10, "kind": "number", "correct": 1.0}
