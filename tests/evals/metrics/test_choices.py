"""Letters that are taken from answers."""

import pytest

from segue.evals.metrics import choices, mme
from segue.types import Answer, Sample

ANIMALS = ["cat", "dog", "a bird", "fish and chips"]
CAPTIONS = ["Caption A: A man cooks.", "Caption B: He reads."]
NUMBERED = ["Option 1: A man cooks.", "Option 2: He reads."]


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        (" b", None),
        ("B.", "B"),
        ("(B) dog", "B"),
        ("[C]", "C"),
        ("**B**", "B"),
        ("B: dog", "B"),
        ("B) dog", "B"),
        ("E", None),
        ("A dog", "B"),
        ("A dog or a cat", None),
        ("The answer is B.", "B"),
        ("the answer is: (C)", "C"),
        ("Option D", "D"),
        ("I first thought the answer is A, but the correct option is C.", "C"),
        ("It must be B because of the ears", "B"),
        ("Either B or C", None),
        ("I see a bird.", "C"),
        ("I see birds.", None),
        ("FISH  and chips", "D"),
        ("dogfish", None),
        ("", None),
        ("A", "A"),
        ("It's A", "A"),
        ("The answer is a dog.", "B"),
        ("Answer: a bird", "C"),
        ("the answer is a", "A"),
        ("Option A is right", "A"),
        ("I think that it is B", "B"),
        ("It is B and I am sure.", "B"),
        ("The answer is B. That is the answer I give.", "B"),
        ("A or B", None),
        ("答案是B", "B"),
        ("选B，因为", "B"),
        ("LÉA", None),
    ],
)
def test_the_letter_that_an_answer_states(said, letter):
    assert choices.stated(said, ANIMALS) == letter


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("The best answer is B", "B"),
        ("Best answer: C", "C"),
        ("The correct option is D.", "D"),
        ("Answer: A", "A"),
        ("B. Because A dog", "B"),
        ("Based on it, A", "B"),
        ("it shows a dog", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_first_capital_behind_an_opening(said, letter):
    assert choices.first_capital(said, ANIMALS) == letter


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("<think>A or B</think><answer>B. A dog</answer>", "B"),
        ("<answer>\n C\n</answer> no, <answer>D</answer>", "D"),
        ("The answer is B", None),
        ("<answer></answer>", None),
        ("<answer>B", None),
    ],
)
def test_only_what_is_tagged_as_the_answer_counts(said, letter):
    assert choices.tagged(said, ANIMALS) == letter


def test_what_follows_the_last_announcement_counts():
    assert choices.behind_answer("A is wrong. Answer: B", ANIMALS) == "B"
    assert choices.behind_answer("Answer: A\nAnswer: (C)", ANIMALS) == "C"
    assert choices.behind_answer("D", ANIMALS) == "D"


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("Caption A: A man cooks.", CAPTIONS, "A"),
        ("A man cooks", CAPTIONS, "A"),
        ("caption b", CAPTIONS, "B"),
        ("B.", CAPTIONS, "B"),
        ("Caption B: something else", CAPTIONS, "B"),
        ("2", NUMBERED, "B"),
        ("Option 1.", NUMBERED, "A"),
        ("both", CAPTIONS, None),
        ("", CAPTIONS, None),
        ("", ["no colon"], None),
    ],
)
def test_captions_are_named_in_many_ways(said, options, letter):
    assert choices.named(said, options) == letter


@pytest.mark.parametrize(
    ("said", "word"), [("Yes, it is", "yes"), (" NO.", "no"), ("It is", None), ("", None), ("nobody", "no")]
)
def test_yes_and_no_open_an_answer(said, word):
    assert choices.yes_or_no(said) == word


@pytest.mark.parametrize(
    ("said", "word"),
    [("Yes", "yes"), ("no", "no"), ("A yes", None), ("I no longer", "no"), ("not sure", "no"), ("It is yes", None)],
)
def test_mme_looks_at_the_first_four_letters(said, word):
    assert mme.yes_or_no(said) == word


def test_an_answer_that_chooses_nothing_is_wrong_and_unparsed():
    target = {"options": ANIMALS, "letter": "B", "dimension": "ears"}
    score = choices.multiple_choice(choices.stated)
    right, wrong, none = (score(Sample("1", "chat", (), target=target), Answer(one)) for one in ("B", "C", "hm"))
    assert right == {**target, "answer": "B", "chosen": "B", "correct": 1.0, "unparsed": False}
    assert (wrong["correct"], wrong["unparsed"]) == (0.0, False)
    assert (none["correct"], none["unparsed"], none["chosen"]) == (0.0, True, "")
