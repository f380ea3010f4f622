import numpy as np
import pytest

from segue.geometry.notation import parse_grounded

ANSWERS = {
    "nothing": ("", "", []),
    "no mark, left as it is": (" Two ,  spaces ...\n\n- and a list ", "Two ,  spaces ...\n\n- and a list", []),
    "terminator": ("A red car.<|im_end|>", "A red car.", []),
    "terminators of all families": ("<s>A car.</s><|end|><|endoftext|><|endoftext|>", "A car.", []),
    "only a segment": ("[SEG].", "", [""]),
    "one segment": ("It is [SEG].<|im_end|>", "It is.", [""]),
    "comma before a stop": ("Sure, [SEG].<|im_end|>", "Sure.", [""]),
    "two segments": ("Sure, it is [SEG] and [SEG].<|im_end|>", "Sure, it is.", ["", ""]),
    "spaces as InternLM2 decodes": ("Sure, it is  [SEG]  and  [SEG] . <|im_end|>", "Sure, it is.", ["", ""]),
    "a list of segments": ("They are [SEG], [SEG], and [SEG] here.", "They are here.", ["", "", ""]),
    "named segments": ("Clip_1 [SEG], Clip_2 [SEG].", "Clip_1, Clip_2.", ["", ""]),
    "pause with a space before it": ("Sure , [SEG] .", "Sure.", [""]),
    "one phrase": ("<p> A man </p> [SEG] rides.<|im_end|>", "A man rides.", ["A man"]),
    "two phrases": (
        "<p> A man </p> [SEG] rides <p> a horse </p> [SEG] .",
        "A man rides a horse.",
        ["A man", "a horse"],
    ),
    "same phrase twice": ("<p> dog </p> [SEG] and <p> dog </p> [SEG]", "dog and dog", ["dog", "dog"]),
    "no spaces": ("a <p>red cup</p>[SEG], full", "a red cup, full", ["red cup"]),
    "possessive": ("<p> The man </p> [SEG] 's hat", "The man's hat", ["The man"]),
    "brackets": ("A dog ( <p> brown </p> [SEG] ) runs", "A dog (brown) runs", ["brown"]),
    "line breaks": ("- <p> cat </p> [SEG]\n- <p> dog </p> [SEG]\n", "- cat\n- dog", ["cat", "dog"]),
    "segment on a line of its own": ("Here.\n\n[SEG]\n\nDone.", "Here.\n\nDone.", [""]),
    "phrase ends in a comma": ("<p> A man, </p> [SEG].", "A man,.", ["A man,"]),
    "phrase starts with a stop": ("a <p> .NET logo </p> [SEG]", "a .NET logo", [".NET logo"]),
    "phrase without a segment": ("<p> A man </p> rides <p> a horse </p> [SEG]", "A man rides a horse", ["a horse"]),
    "segment after other words": ("<p> A man </p> is [SEG].", "A man is.", [""]),
    "second segment of a phrase": ("<p> Men </p> [SEG] [SEG]", "Men", ["Men", ""]),
    "empty phrase": ("Look: <p> </p> [SEG] here", "Look: here", [""]),
    "nested, outer asked": ("<p> a <p> red </p> cup </p> [SEG]", "a red cup", ["a red cup"]),
    "nested, both asked": ("<p> a <p> red </p> [SEG] cup </p> [SEG]", "a red cup", ["red", "a red cup"]),
    "doubled tags": ("<p> <p> a cup </p> </p> [SEG]", "a cup", ["a cup"]),
    "opened twice": ("<p> a <p> cup </p> [SEG]", "a cup", ["cup"]),
    "never closed": ("<p> a cup [SEG]. <p> A dog </p> [SEG].", "a cup. A dog.", ["", "A dog"]),
    "never opened": ("a cup </p> [SEG], <p> a dog </p> [SEG]", "a cup, a dog", ["", "a dog"]),
    "closed twice": ("<p> a cup </p> </p> [SEG]", "a cup", ["a cup"]),
    "visual prompt tags": ("In <vp> region1 </vp> is [SEG].", "In region1 is.", [""]),
    "full-width punctuation": ("<p> 一只狗 </p> [SEG] 。", "一只狗。", ["一只狗"]),
    "other angle brackets": ("if a<b and <|x|> then <pre>", "if a<b and <|x|> then <pre>", []),
}


@pytest.mark.parametrize(("raw", "text", "phrases"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_read_as_clean_text_and_phrases(raw, text, phrases):
    clean, regions = parse_grounded(raw)
    assert clean == text
    assert [region.phrase for region in regions] == phrases


def test_spans_tell_apart_two_phrases_of_the_same_words():
    _, regions = parse_grounded("<p> dog </p> [SEG] and <p> dog </p> [SEG]")
    assert [region.span for region in regions] == [(0, 3), (8, 11)]


def test_a_segment_without_a_phrase_has_no_span():
    assert parse_grounded("It is [SEG].")[1][0].span is None


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_of_marks_keeps_regions_and_spans_aligned(seed):
    pieces = ["[SEG]", "<p>", "</p>", " ", "  ", "\n", "a man", "dog", ",", ".", " and ", "'s", "(", ")", "</s>", ",,"]
    rng = np.random.default_rng(seed)
    for _ in range(200):
        raw = "".join(rng.choice(pieces, size=rng.integers(1, 25)))
        text, regions = parse_grounded(raw)
        assert len(regions) == raw.count("[SEG]")
        assert text == text.strip()
        assert not any(mark in text for mark in ("[SEG]", "<p>", "</p>", "</s>"))
        for region in regions:
            start, stop = region.span or (0, 0)
            assert text[start:stop] == region.phrase == region.phrase.strip()
            assert (region.span is None) == (region.phrase == "")


def test_clean_text_is_its_own_clean_text():
    text, _ = parse_grounded("<p> A man </p> [SEG] rides <p> a horse </p> [SEG] .<|im_end|>")
    assert parse_grounded(text) == (text, ())
