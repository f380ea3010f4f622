"""Answers as other tools take them."""

import numpy as np
import pytest

from segue.errors import DataError
from segue.media import open_media
from segue.output.answers import Answer
from segue.types import MaskTrack, Region

TRACK = MaskTrack((3, 6), np.array([0, 1]), ("639", "b0"))  # three columns of the first frame, nothing of the second
SEEN = Region("<b>star</b>", None, np.array([2.0, 0, 5, 3]), TRACK, 0.5, np.array([0.9, 0.1]), np.array([1.0, 0.0]))


@pytest.fixture
def answer():
    return Answer(
        "Here & there.",
        (SEEN, Region("box", box=np.array([0.0, 0, 1, 1]))),
        media=open_media(np.zeros((2, 3, 6, 3), np.uint8)),
    )


def test_a_table_has_a_row_for_each_frame_of_each_region(answer):
    table = pytest.importorskip("pandas") and answer.to_pandas()
    assert table["object"].tolist() == [1, 1, 2]
    assert table["area"].tolist()[:2] == [int(TRACK.dense(0).sum()), 0]
    assert table["score"].tolist()[:2] == [0.9, 0.1]
    assert table.loc[2, ["x0", "y0", "x1", "y1"]].tolist() == [0, 0, 1, 1]


def test_detections_are_those_of_one_frame(answer):
    pytest.importorskip("supervision")
    found = answer.to_supervision()
    np.testing.assert_array_equal(found.mask, TRACK.dense(0)[None])
    assert (found.confidence.tolist(), found.data["class_name"].tolist()) == ([0.9], ["<b>star</b>"])
    assert len(answer.to_supervision(1)) == 0
    with pytest.raises(DataError, match="frame 7 has no masks; frames 0 to 1 have"):
        answer.to_supervision(7)
    assert Answer("x", answer.regions[1:]).to_supervision().xyxy.tolist() == [[0, 0, 1, 1]]


def test_a_notebook_shows_text_picture_and_regions_and_runs_nothing_that_others_wrote(answer, tmp_path):
    html = answer._repr_html_()
    assert "Here &amp; there." in html and "&lt;b&gt;star" in html and "data:image/png" in html
    assert answer._repr_png_().startswith(b"\x89PNG")
    assert Answer("x")._repr_png_() is None
