import random

import pytest

from segue.clean_text import CleanText
from segue.geometry import notation
from segue.models.longva.family import parse as parse_longva
from segue.models.qwen_vl.family import parse as parse_qwen
from segue.requests import until_stop

PIECES = {
    "sa2va": (
        notation.parse,
        [
            "<p>",
            "</p>",
            "[SEG]",
            "[SEG]",
            " ",
            ", ",
            " and ",
            "and",
            ".",
            "the dog",
            "a long phrase of words",
            "<",
            "[",
        ],
    ),
    "qwen": (
        parse_qwen,
        [
            "<ref>",
            "</ref>",
            "<box>(12,3),(400,500)</box>",
            "<quad>",
            "</box>",
            " ",
            ", ",
            "the dog",
            "。",
            "一只狗",
            "<",
        ],
    ),
    "words": (parse_longva, ["a", " b", ",", "...", "\n", "<i>", "[1]", "word after word "]),
}


@pytest.mark.parametrize("notation", list(PIECES))
@pytest.mark.parametrize("stops", [(), ("dog, ", " b")])
def test_pieces_joined_are_the_whole_text(notation, stops):
    parse, pieces = PIECES[notation]
    draws = random.Random(notation + str(stops))
    for _ in range(30):
        raw = "".join(draws.choices(pieces, k=draws.randint(0, 24))) + "<|im_end|>" * draws.randint(0, 1)
        text, told, place = CleanText(parse, stops), "", 0
        while place < len(raw):
            size = draws.randint(1, 6)
            told += text.add(raw[place : place + size])
            place += size
        whole = parse(until_stop(raw, stops), None, None)[0]
        assert whole.startswith(told), (raw, told)
        assert told + text.finish(whole) == whole


def test_words_are_told_as_they_come_and_marks_wait():
    text = CleanText(notation.parse)
    assert [text.add(piece) for piece in ("It", " is", " here", ", ", "<p> the")] == ["It", " is", " here", "", ""]
    assert text.add(" dog </p> [SEG] that runs over the green grass") == ", the dog that runs over the green grass"
