"""Generated pages: the ink lies inside its quads, and a page is the same every time."""

import numpy as np
import pytest

from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError
from segue.synth import pages


def inside(quad, size):
    """The pixels whose middle lies in a quad, or at most one and a half pixels beyond its sides."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    covered = np.ones(size, bool)
    for (left, top), (right, bottom) in zip(quad, np.roll(quad, -1, 0), strict=True):
        across, down = right - left, bottom - top
        covered &= across * (y - top) - down * (x - left) >= -1.5 * np.hypot(across, down)
    return covered


@pytest.mark.parametrize("index", range(6))
def test_ink_lies_in_its_quads_and_fills_them(index):
    drawn = pages.page(0, index, size=(256, 320))
    plain = drawn.pixels.astype(int)
    # neighbours of one colour differ little on the background and much at the edge of a letter
    edges = np.abs(np.diff(plain, axis=1)).max(-1) > 60
    covered = np.zeros(plain.shape[:2], bool)
    for line in drawn.lines:
        here = inside(line.quad, plain.shape[:2])
        covered |= here
        low, high = line.box[:2].astype(int), np.ceil(line.box[2:]).astype(int)
        assert (low >= 0).all() and high[0] <= 320 and high[1] <= 256
    assert not edges[~(covered[:, 1:] | covered[:, :-1])].any()


def test_lines_stand_from_top_to_bottom_and_their_boxes_are_around_them():
    drawn = pages.page(0, 4, size=(256, 320))
    middles = [line.quad[:, 1].mean() for line in drawn.lines]
    assert len(middles) > 2 and middles == sorted(middles)
    for line in drawn.lines:
        assert np.allclose(line.box, [*line.quad.min(0), *line.quad.max(0)])
        assert line.phrase and line.phrase == line.phrase.strip()


def test_a_page_follows_from_its_numbers_alone():
    first, again = pages.page(0, 3), pages.page(0, 3)
    assert np.array_equal(first.pixels, again.pixels) and [x.phrase for x in first.lines] == [
        x.phrase for x in again.lines
    ]
    assert not np.array_equal(first.pixels, pages.page(0, 3, split="test").pixels)
    assert not np.array_equal(first.pixels, pages.page(0, 4).pixels)


def test_pages_are_a_dataset_whose_answer_is_their_lines(tmp_path):
    rows = DATASETS["pages"](tmp_path, "train", count=3, side=224)
    sample = rows.get(1, np.random.default_rng(0))
    question, answer = sample.messages
    assert len(rows) == 3 and question.text == "OCR with grounding:" and question.parts[0].size == (224, 224)
    assert [part.phrase for part in answer.parts] == sample.target["answers"] != []


def test_only_the_words_that_are_given_are_written_as_large_as_asked():
    writing = pages.Writing(words="tea egg", most_lines=1, most_words=2, least_height=0.2, most_height=0.25)
    lines = [line for number in range(6) for line in pages.page(0, number, size=(64, 64), writing=writing).lines]
    assert {word for line in lines for word in line.phrase.split()} == {"tea", "egg"}
    assert all(np.ptp(line.quad[:, 1]) > 6 for line in lines)


def test_fonts_of_the_machine_have_the_letters_that_are_asked_for():
    for file in pages.fonts_for("en")[:3]:
        assert pages._has(file, "en")
    if not pages.fonts_for("zh"):
        with pytest.raises(DataError, match="fonts-noto-cjk"):
            pages.page(0, 0, writing=pages.Writing(language="zh"))
    else:
        (first, *_) = pages.page(0, 0, writing=pages.Writing(language="zh")).lines
        assert "\u4e00" <= first.phrase[0] <= "\u9fff"


@pytest.mark.parametrize("wrong", [{"most_lines": 0}, {"side": 8}, {"colour": "red"}])
def test_a_page_that_cannot_be_drawn_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError):
        DATASETS["pages"](tmp_path, "train", **wrong).get(0, np.random.default_rng(0))
