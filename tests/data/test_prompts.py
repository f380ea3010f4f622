import re
from pathlib import Path

import numpy as np
import pytest

from segue.data import prompts
from segue.errors import DataError

FOLDER = Path(prompts.__file__).parent / "prompts"
BLANKS = {
    "segment_questions": ["{phrase}"],
    "reason_questions": ["{phrase}"],
    "describe_questions": ["{phrase}"],
    "segment_answers": [],
    "absent_answers": [],
    "caption_questions": [],
    "region_questions": ["{region}"],
    "short_requests": [],
}


def test_every_file_is_known_here():
    assert {path.stem for path in FOLDER.glob("*.txt") if not path.name.startswith("synth")} == set(BLANKS)


@pytest.mark.parametrize("name", BLANKS)
def test_wordings_are_whole_different_and_have_their_blanks(name):
    lines = prompts.wordings(name)
    assert len(lines) == len(set(lines)) > 0
    for line in lines:
        assert line == line.strip() and line and "  " not in line
        assert line.count('"') % 2 == 0
        assert re.findall(r"\{.*?\}", line) == BLANKS[name]
        assert line.endswith((".", "?", "}")), "two wordings may have run together"
        assert line.count("[SEG]") == (name == "segment_answers")
        assert not re.search(r"<|>", line), "placeholders and special tokens are put in elsewhere"


def test_every_wording_comes_by_chance_and_the_same_chance_says_the_same():
    said = {prompts.sample_wording("segment_answers", np.random.default_rng(seed)) for seed in range(100)}
    assert said == set(prompts.wordings("segment_answers"))
    first, again = (prompts.segment_question("the dog", np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert "the dog" in first


def test_a_phrase_that_is_a_question_stays_one():
    for seed in range(20):
        question = prompts.segment_question("Who won {the} race?", np.random.default_rng(seed))
        assert question.startswith("Who won {the} race? ")
        assert "mask" in question


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (" Left Man. ", "left man"),
        ("left man", "left man"),
        ("St. Bernard", "st. bernard"),
        ("等等。", "等等。"),
        ("e.g..", "e.g."),
    ],
)
def test_phrases_are_cleaned(text, phrase):
    assert prompts.clean_phrase(text) == phrase


@pytest.mark.parametrize("text", ["", " ", ".", " . "])
def test_an_empty_phrase_is_told(text):
    with pytest.raises(DataError, match="says nothing"):
        prompts.clean_phrase(text)


def test_a_phrase_with_bytes_that_are_no_text_is_refused():
    with pytest.raises(DataError, match="bytes that are no text"):
        prompts.clean_phrase("red box \udcff")
