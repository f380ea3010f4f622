"""Exact match, ANLS, relaxed accuracy and GQA's answers, and the recorded values of the original's evaluation."""

import json
import random
from pathlib import Path

import pytest

from segue.evals.metrics import text
from segue.types import Answer, Sample

RECORDED = json.loads((Path(__file__).parents[2] / "golden/qwen_vl/metrics.json").read_text("utf-8"))


@pytest.mark.parity
@pytest.mark.parametrize("case", RECORDED["anls"]["cases"], ids=lambda case: case["pred"])
def test_similarity_is_the_recorded_one(case):
    assert max(text.similarity(case["pred"], one) for one in case["gt"]) == pytest.approx(case["score"], abs=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("case", RECORDED["relaxed_accuracy"]["cases"], ids=lambda case: case["answer"])
def test_relaxed_swapped_is_the_recorded_habit_and_the_corrected_value_is_ours(case):
    assert text.relaxed(case["answer"], case["annotation"]) == case["corrected"]
    assert text.relaxed(case["answer"], case["annotation"], share_of="answer") == case["reference"]


@pytest.mark.parity
@pytest.mark.parametrize("case", RECORDED["gqa_postprocess"], ids=lambda case: case["text"])
def test_gqa_answers_are_the_recorded_ones(case):
    assert text.gqa_answer(case["text"]) == case["out"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("banana split", "split"),
        ("It is a dog, is it?", "dog"),
        ("", ""),
        ("Out of milk!", "out"),
        ("area code", "code"),
    ],
)
def test_gqa_pieces_are_cut_inside_words_too(said, kept):
    assert text.gqa_answer(said) == kept


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("-10", "10", 0),
        ("5%", "0.05", 1),
        ("%", "%", 1),
        ("nan", "NaN", 1),
        ("inf", "1e999", 0),
        ("1e3", "1000", 1),
        ("", "", 1),
        ("7", " 7 ", 1),
        ("yes", " yes", 0),
    ],
)
def test_numbers_are_right_within_five_percent_of_the_reference(answer, reference, right):
    assert text.relaxed(answer, reference) == right


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_the_distance_counts_letters_to_put_in_take_out_or_replace(first, second, distance):
    assert text.levenshtein(first, second) == distance


def test_the_distance_is_that_of_its_definition_on_random_words():
    def defined(first, second):
        if not first or not second:
            return len(first) + len(second)
        return min(
            defined(first[1:], second) + 1,
            defined(first, second[1:]) + 1,
            defined(first[1:], second[1:]) + (first[0] != second[0]),
        )

    draws = random.Random(3)
    for _ in range(40):
        first, second = ("".join(draws.choices("ab c", k=draws.randrange(6))) for _ in range(2))
        assert text.levenshtein(first, second) == defined(first, second)


def test_the_best_reference_counts_and_the_row_keeps_the_answer_as_it_was_compared():
    sample = Sample("1", "chat", (), target={"question_id": "q", "answers": ["dog", "Cat"]})
    row = text.best_of(text.exact)(sample, Answer(" cat\n"))
    assert row == {"question_id": "q", "answer": "cat", "answers": ["dog", "Cat"], "correct": 1.0}
    assert text.best_of(text.exact, read=text.gqa_answer)(sample, Answer("It is a dog."))["correct"] == 1
    assert text.best_of(text.exact)(sample, Answer("It is a dog."))["correct"] == 0
