"""Captions against recorded values of the official scorers; the file says how they were made."""

import json
from pathlib import Path

import numpy as np
import pytest

from segue.errors import DataError
from segue.evals.metrics import captions, meteor
from segue.types import Answer, Media, Message, Sample

RECORDED = json.loads(Path(__file__).with_name("recorded_captions.json").read_text(encoding="utf-8"))
FOUND = [captions.words(said) for said, _ in RECORDED["captions"]]
TRUTH = [tuple(captions.words(text) for text in references) for _, references in RECORDED["captions"]]


def test_words_are_cut_as_the_official_tokenizer_cuts_them() -> None:
    assert {text: " ".join(captions.words(text)) for text in RECORDED["words"]} == RECORDED["words"]


def test_bleu_equals_the_official_scorer() -> None:
    assert captions.bleu(FOUND, TRUTH) == pytest.approx(RECORDED["bleu"], abs=1e-9)


def test_cider_equals_the_official_scorer() -> None:
    assert captions.cider(FOUND, TRUTH) == pytest.approx(RECORDED["cider"], abs=1e-12)


def test_rouge_equals_the_official_scorer() -> None:
    scores = [captions.rouge_l(one, others) for one, others in zip(FOUND, TRUTH, strict=True)]
    assert scores == pytest.approx(RECORDED["rouge"], abs=1e-12)


def test_meteor_equals_the_official_program_with_the_modules_that_the_name_says() -> None:
    assert captions.meteor_score(FOUND, TRUTH) == pytest.approx(RECORDED["meteor"], abs=1e-9)
    scored = [
        meteor.best_alignment(said.split(), [text.split() for text in references])
        for said, references in RECORDED["pairs"]
    ]
    assert [one.score for one in scored] == pytest.approx(RECORDED["pairs_meteor"], abs=1e-9)
    assert sum(scored, meteor.Alignment()).score == pytest.approx(RECORDED["pairs_meteor_together"], abs=1e-9)


def rows(*texts: tuple[str, list[str]]) -> list[dict]:
    return [{"caption": said, "references": references} for said, references in texts]


def test_what_people_said_scores_best_and_nothing_scores_nothing() -> None:
    texts = ["a red bus on the street", "two dogs play in the grass", "the old man holds a kite"]
    best = captions.reduce(rows(*((text, [text]) for text in texts)))
    assert best == pytest.approx(dict.fromkeys(best, 100.0) | {"cider": 1000.0})
    worst = captions.reduce(rows(*(("", [text]) for text in texts)))
    assert worst == dict.fromkeys(best, 0.0)
    assert "meteor (exact+stem)" in best, "the figure says which variant it is"


def test_the_order_of_rows_does_not_matter() -> None:
    some = rows(*((said, references) for said, references in RECORDED["captions"]))
    assert captions.reduce(some) == pytest.approx(captions.reduce(some[::-1]))


@pytest.mark.parametrize(("some", "message"), [([], "no rows"), (rows(("a dog", [])), "no caption to compare")])
def test_nothing_to_score_is_an_error(some, message) -> None:
    with pytest.raises(DataError, match=message):
        captions.reduce(some)


def test_references_are_those_of_the_target_or_the_dialogue() -> None:
    media = Media(np.zeros((4, 4, 3), np.uint8), "image", (4, 4))
    messages = (Message.user("What is it?", media), Message("assistant", ("a dog",)))
    assert captions.score(Sample("a", "caption", messages), Answer("a cat"))["references"] == ["a dog"]
    sample = Sample("a", "caption", messages, target={"references": ["one", "two"]})
    row = captions.score(sample, Answer(" "))
    assert (row["references"], row["unparsed"]) == (["one", "two"], True)
