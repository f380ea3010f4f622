"""Qwen-VL's notation, to regions and back."""

import numpy as np
import pytest

from segue.geometry import qwen_notation as notation
from segue.types import Region


def test_every_box_of_a_phrase_carries_it_and_its_span():
    raw = "<ref> Two apples</ref><box>(302,257),(582,671)</box><box>(603,252),(878,642)</box> and<ref> a bowl</ref>"
    text, regions = notation.parse(raw + "<box>(2,269),(304,674)</box>.<|im_end|>", (1000, 999))
    assert text == "Two apples and a bowl."
    assert [region.phrase for region in regions] == ["Two apples", "Two apples", "a bowl"]
    assert all(text[slice(*region.span)] == region.phrase for region in regions)
    assert np.allclose(regions[0].box, [302, 257 / 999 * 1000, 582, 671 / 999 * 1000])


def test_chinese_and_a_quad():
    raw = "图中<ref>招牌</ref><quad>(0,0),(999,0),(999,999),(0,500)</quad>很大。"
    text, (region,) = notation.parse(raw, (40, 200))
    assert text == "图中招牌很大。" and text[slice(*region.span)] == "招牌"
    assert region.quad.tolist() == [[0, 0], [200, 0], [200, 40], pytest.approx([0, 20.02], abs=1e-2)]
    assert region.box.tolist() == [0, 0, 200, 40]


@pytest.mark.parametrize(
    ("raw", "text", "boxes"),
    [
        ("", "", 0),
        ("plain words", "plain words", 0),
        ("<box>(1,2),(3,4)</box>", "", 1),
        ("(1,2),(3,4)", "(1,2),(3,4)", 0),
        ("<box>(1,2),(3)</box> odd", "odd", 0),
        ("<box>(1,2),(3,4) unfinished", "(1,2),(3,4) unfinished", 0),
        ("</box></ref> stray <imgpad>", "stray", 0),
        ("<ref>a<box>(1,2),(3,4)</box></ref>", "a", 1),
        ("<ref></ref><box>(1,2),(3,4)</box>", "", 1),
        ("<quad>(1,2),(3,4)</quad>", "", 0),
        ("<img>/etc/passwd</img>no", "no", 0),
        ("<ref>cat</ref> sat <box>(1,2),(3,4)</box>", "cat sat", 1),
    ],
)
def test_odd_marks_cost_no_words(raw, text, boxes):
    found, regions = notation.parse(raw, (10, 10))
    assert (found, len(regions)) == (text, boxes)


def test_a_place_behind_other_words_has_no_phrase():
    _, (first, second) = notation.parse("<ref>cat</ref> \n<box>(1,2),(3,4)</box> and <box>(5,6),(7,8)</box>", (10, 10))
    assert (first.phrase, second.phrase, second.span) == ("cat", "", None)


def test_corners_in_the_wrong_order_are_put_right_and_numbers_end_at_the_edge():
    _, (region,) = notation.parse("<box>(1000,700),(8,65)</box>", (999, 999))
    assert region.box.tolist() == [8, 65, 999, 700]


@pytest.mark.parametrize("size", [(480, 640), (1, 4000), (3000, 7), (1000, 1000), (337, 991)])
def test_a_box_written_and_read_is_at_most_half_a_grid_cell_away(size):
    rng = np.random.default_rng(0)
    height, width = size
    corners = np.sort(rng.uniform(size=(200, 2, 2)), axis=1) * [width, height]
    corners[0] = [[0, 0], [width, height]]
    for box in corners.reshape(-1, 4):
        _, (back,) = notation.parse(notation.place_text(Region(box=box), size), size)
        assert (np.abs(back.box - box) <= np.array([width, height] * 2) / 999 / 2 + 1e-9).all()


def test_what_was_read_is_written_alike():
    raw = "<ref>the sign</ref><quad>(10,20),(300,25),(299,80),(11,70)</quad><box>(0,7),(999,65)</box>"
    _, regions = notation.parse(raw, (123, 457))
    assert notation.region_text("the sign", regions, (123, 457)) == raw


def test_a_caption_without_its_places():
    raw = "<ref>Two apples</ref><box>(302,257),(582,671)</box><box>(603,252),(878,642)</box> by <ref>a sign</ref>"
    assert notation.without_places(raw + "<quad>(1,1),(2,1),(2,2),(1,2)</quad>. ") == "Two apples by a sign."


def test_ten_megabytes_of_marks_are_read_at_once():
    text, regions = notation.parse("<box>" * 2_000_000, (10, 10))
    assert (text, regions) == ("", ())
