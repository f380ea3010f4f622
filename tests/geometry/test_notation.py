import numpy as np
import pytest

from segue.geometry.notation import box_text, parse_boxes, parse_grounded

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


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((0, 0, 200, 100), "<box>[[0,0,1000,1000]]</box>"),
        ((20, 10, 61, 52), "<box>[[100,100,305,520]]</box>"),
        ((-5, -5, 300, 300), "<box>[[0,0,1000,1000]]</box>"),
    ],
)
def test_a_box_is_written_in_thousandths_and_never_beyond_the_medium(box, text):
    assert box_text(np.array(box, float), (100, 200)) == text


def test_a_box_that_is_written_and_read_is_the_same_to_half_a_thousandth():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = tuple(int(side) for side in rng.integers(40, 2000, 2))
        box = (np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * size[::-1]).ravel()
        (found,) = parse_boxes(f"It is at {box_text(box, size)}.", size)
        assert (abs(found.box - box) <= np.array([*size[::-1], *size[::-1]]) / 2000 + 1e-9).all()


def test_boxes_are_read_in_order_spaces_allowed_and_coordinates_clipped():
    raw = "A <box>[[0, 0, 500, 500]]</box> and <box> [[ 100,200,1200,99999 ]] </box>."
    found = [region.box.tolist() for region in parse_boxes(raw, (100, 200))]
    assert found == [[0, 0, 100, 50], [20, 20, 200, 100]]
    assert all(region.phrase == "" and region.masks is None for region in parse_boxes(raw, (100, 200)))


@pytest.mark.parametrize(
    "raw",
    [
        *("", "no box", "[[1,2,3,4]]", "<box>[[1,2,3]]</box>", "<box>[[1,2,3,4,5]]</box>", "<box>[1,2,3,4]</box>"),
        *("<box>[[1,2,3,4]]", "<box>[[-1,2,3,4]]</box>", "<box>[[1.5,2,3,4]]</box>", "<box>[[a,b,c,d]]</box>"),
        "<box>[[1,2,3,4],[5,6,7,8]]</box>",
    ],
)
def test_what_is_written_otherwise_is_no_box(raw):
    assert parse_boxes(raw, (100, 100)) == ()
