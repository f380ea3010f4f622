"""VQA accuracy: how many of ten people gave the answer, after both sides were brought into one form.

Source: Antol et al. 2015 and the evaluation code of VQA, in the version that Qwen-VL's figures were made with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from segue.evals.base import Row
from segue.evals.metrics.figures import mean
from segue.types import Answer, Sample

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32
_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_WORDS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've couldn't've hadn't've he'd've
it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've something'd've there'd've they'd've
we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""


def _without_one(word: str) -> list[str]:
    """A word without each of its apostrophes in turn."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


# the last entry is an oddity of the official table
_CONTRACTIONS = {short: word for word in _WORDS.split() for short in _without_one(word)} | {"somebody'd": "somebodyd"}


def without_punctuation(text: str) -> str:
    """Text without punctuation marks: each is dropped where it touches a space anywhere in the text, or where a number
    with a thousands separator occurs, and is a space otherwise. Full stops that no digit follows are dropped.
    """
    has_thousands = _THOUSANDS.search(text) is not None
    plain = text
    for mark in _MARKS:
        is_loose = has_thousands or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if is_loose else " ")
    return _FULL_STOP.sub("", plain, count=_MOST_STOPS)


def normalised(text: str) -> str:
    """An answer as it is compared: without punctuation and articles, in lower case, numbers up to ten as digits,
    contractions with their apostrophe, words one space apart.
    """
    words = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [word for word in (_DIGITS.get(word, word) for word in words) if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def accuracy(answer: str, references: Sequence[str]) -> float:
    """The share, in [0, 1], of an answer among people's: the mean, over leaving one person out, of a third for each of
    the others who said the same, at most 1. At least one reference.
    """
    # PARITY(vqa_references): people's answers lose their punctuation only, and not even that where all say the same
    if len(set(references)) > 1:
        references = [without_punctuation(reference) for reference in references]
    found = normalised(answer)
    same = [reference == found for reference in references]
    return mean(min(1.0, (sum(same) - one) / 3) for one in same)


def score(sample: Sample, answer: Answer) -> Row:
    """VQA accuracy against `target["answers"]`; `kind` is the official type of the question, if there is one."""
    return {
        "question_id": sample.target["question_id"],
        "answer": answer.text.strip(),
        "answers": list(sample.target["answers"]),
        "kind": sample.target.get("kind", ""),
        "correct": accuracy(answer.text, sample.target["answers"]),
    }
