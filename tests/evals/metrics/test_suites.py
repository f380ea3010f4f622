"""What belongs to one benchmark alone: MME's pairs, MMBench's rotations, boxes, judges, long videos."""

import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from segue.errors import DataError, MediaError
from segue.evals.metrics import confidence, figures, grounding, image_captions, llm_judge, long_video, mmbench, mme
from segue.evals.run import submissions
from segue.types import Answer, Message, Region, Sample

RECORDED = json.loads((Path(__file__).parents[2] / "golden/qwen_vl/metrics.json").read_text("utf-8"))


def asked(subtask, image, *answers):
    """Rows of one image: the truth is yes and then no."""
    rows = []
    for said, truth in zip(answers, ("Yes", "No"), strict=True):
        target = {"subtask": subtask, "image": image, "question": "Is it?", "truth": truth}
        row = mme.score(Sample("x", "chat", (), target=target), Answer(said))
        rows.append({**row, "group": f"{subtask}/{image}"})
    return rows


def test_mme_adds_the_share_of_images_with_both_answers_right():
    rows = [
        *asked("existence", "1.jpg", "Yes", "No"),
        *asked("existence", "2.jpg", "Yes", "Yes"),
        *asked("code_reasoning", "1.jpg", "hm", "no"),
    ]
    figures = mme.reduce(rows)
    assert figures["existence"] == 75 + 50
    assert figures["code_reasoning"] == 50
    assert (figures["perception"], figures["cognition"], figures["total"]) == (125, 50, 175)
    assert figures["unparsed"] == pytest.approx(100 / 6)


def test_mme_is_written_as_its_own_tool_reads_it(tmp_path):
    folder = mme.submit(
        [*asked("color", "1.jpg", "Yes,\tit\nis", "No"), *asked("OCR", "2.jpg", "no", "no")], tmp_path / "m"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["OCR.txt", "color.txt"]
    assert (folder / "color.txt").read_text().splitlines()[0].split("\t") == ["1.jpg", "Is it?", "Yes", "Yes, it is"]
    mme.submit(asked("color", "1.jpg", "Yes", "No"), folder)
    assert [path.name for path in folder.iterdir()] == ["color.txt"]
    (folder / "mine.txt").touch()
    with pytest.raises(MediaError, match="not ours"):
        mme.submit(asked("color", "1.jpg", "Yes", "No"), folder)


def rotations(question, *chosen, options=("red", "green", "blue"), right="green"):
    rows = []
    for turn, letter in enumerate(chosen):
        turned = [*options[turn:], *options[:turn]]
        truth = "ABC"[turned.index(right)]
        index = question + 1_000_000 * turn
        columns = {"index": str(index), "question": "Which & <why>?"}
        rows.append(
            {"index": index, "options": turned, "letter": truth, "chosen": letter, "correct": float(letter == truth)}
            | {"unparsed": not letter, "category": "colour", "columns": columns, "group": str(question)}
        )
    return rows


def test_mmbench_wants_every_rotation_right_or_takes_a_vote():
    always, mostly, never = rotations(1, "B", "A", "C"), rotations(2, "B", "A", "A"), rotations(3, "A", "A", "A")
    figures = mmbench.reduce([*always, *mostly, *never])
    assert figures["circular"] == pytest.approx(100 / 3)
    assert figures["voted"] == pytest.approx(200 / 3)
    assert figures["single"] == pytest.approx(100 * (3 + 2 + 1) / 9)
    assert figures["circular/colour"] == figures["circular"]


def test_of_equal_votes_the_first_counts_and_no_vote_is_no_answer():
    # red by the first, green by the second rotation
    assert mmbench.reduce(rotations(1, "A", "A"))["voted"] == 0
    assert mmbench.reduce(rotations(1, "B", "C"))["voted"] == 100
    assert mmbench.reduce(rotations(1, "", ""))["voted"] == 0


def test_mmbench_is_written_as_a_sheet_with_one_option_for_all_rotations(tmp_path):
    path = mmbench.submit([*rotations(2, "B", "A", "A"), *rotations(1, "", "", "")], tmp_path / "sent")
    assert path.name == "sent.xlsx"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
        parts = [ElementTree.fromstring(archive.read(name)) for name in names]
    assert len(parts) == 5
    space = {"s": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    cells = [["".join(cell.itertext()) for cell in row] for row in sheet.iterfind(".//s:row", space)]
    assert {cell.get("t") for cell in sheet.iterfind(".//s:row[2]/s:c[1]", space)} == {"n"}
    assert cells[0] == ["index", "question", "prediction"]
    assert [row[0] for row in cells[1:]] == ["1", "2", "1000001", "1000002", "2000001", "2000002"]
    assert [row[2] for row in cells[1:]] == ["", "B", "", "A", "", "C"]
    assert cells[1][1] == "Which & <why>?"


def test_numbers_of_a_sheet_are_numbers_and_what_xml_cannot_hold_is_left_out(tmp_path):
    path = submissions.write_sheet(tmp_path / "a.xlsx", [{"a": 1.5, "b": "x\x00\ny", "c": None, "d": True}])
    with zipfile.ZipFile(path) as archive:
        text = archive.read("xl/worksheets/sheet1.xml").decode()
    assert "<v>1.5</v>" in text
    assert 'xml:space="preserve">x\ny<' in text
    assert ">True<" in text


@pytest.mark.parity
@pytest.mark.parametrize("case", RECORDED["grounding"], ids=lambda case: case["answer"])
def test_boxes_in_words_overlap_as_recorded(case):
    target = {"box": case["gt_bbox"], "size": case["height_width"]}
    row = grounding.score(Sample("1", "chat", (), target=target), Answer(case["answer"]))
    assert row["iou"] == pytest.approx(case["iou"], abs=1e-6)
    assert (row["iou"] >= 0.5) == case["correct"]
    assert row["unparsed"] == (case["pred_bbox"] == [0, 0, 0, 0])


def test_a_box_that_the_engine_read_counts_where_the_text_has_none():
    sample = Sample("1", "chat", (), target={"box": [0.0, 0.0, 10.0, 10.0], "size": [20, 20]})
    found = Region(box=np.array([0.0, 0.0, 10.0, 5.0]))
    assert grounding.score(sample, Answer("<box>[[0,0,500,250]]</box>", (found,)))["iou"] == 0.5
    assert grounding.score(sample, Answer("(0,0),(499,499)", (found,)))["iou"] > 0.9
    assert grounding.reduce([{"iou": 0.5, "unparsed": False}, {"iou": 0.0, "unparsed": True}]) == {
        "acc@0.5": 50.0,
        "iou": 25.0,
        "unparsed": 50.0,
    }


def test_an_inverted_box_overlaps_nothing():
    sample = Sample("1", "chat", (), target={"box": [0.0, 0.0, 20.0, 20.0], "size": [20, 20]})
    row = grounding.score(sample, Answer("(999,999),(0,0)"))
    assert (row["iou"], row["unparsed"]) == (0.0, False)


def waiting(name, said, **target):
    messages = (Message("user", ("\nWhat?",)), Message("assistant", ("A man.",)))
    row = llm_judge.to_rate((1.0, 10.0))(Sample(name, "chat", messages, target=target), Answer(said))
    return {**row, "id": name, "group": name}


def test_a_judge_rates_what_was_said_and_silence_has_the_lowest_rating(tmp_path):
    rows = [waiting("a", "One.", categories=["x", "y"]), waiting("b", "Two.", categories=["x"]), waiting("c", " ")]
    reduce = llm_judge.ratings("score", times=100.0, by=("categories",))
    assert reduce(rows) == {"answers": 3.0, "judged": pytest.approx(100 / 3)}
    text = json.dumps([{"id": "a", "rating": 7}, {"id": "b", "rating": 4.0}])
    (tmp_path / "j.json").write_text(text, encoding="utf-8-sig")  # as Windows writes it
    figures = reduce(llm_judge.rated(rows, tmp_path / "j.json"))
    assert figures == {
        "answers": 3.0,
        "judged": 100.0,
        "score": pytest.approx(400),
        "score/x": pytest.approx(550),
        "score/y": pytest.approx(700),
    }


def test_both_rounds_of_touchstones_own_results_are_averaged(tmp_path):
    line = {"ques_id": 0, "round1": {"score1": 9, "score2": 6}, "round2": {"score1": 8, "score2": 9}}
    (tmp_path / "j.jsonl").write_text(json.dumps(line) + "\n")
    assert llm_judge.rated([waiting("0", "One.")], tmp_path / "j.jsonl")[0]["rating"] == 7.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "rating": 11}', "expected 1 to 10"),
        ('{"id": "a", "rating": NaN}', "expected 1 to 10"),
        ('{"id": "z", "rating": 3}', "no row of this run"),
        ('{"id": "a", "rating": 3}\n{"id": "a", "rating": 3}', "twice"),
        ('{"id": "a"}', "record 1"),
        ('{"id": "a", "rating": "good"}', "record 1"),
        ("[1]", "record 1"),
        ("nonsense", "neither JSON"),
    ],
)
def test_a_judges_file_that_does_not_fit_is_told(text, message, tmp_path):
    (tmp_path / "j.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        llm_judge.rated([waiting("a", "One.")], tmp_path / "j.jsonl")
    with pytest.raises(DataError, match="'a', which is scored without a judge"):
        (tmp_path / "b.jsonl").write_text('{"id": "a", "rating": 3}')
        llm_judge.rated([{"id": "a", "correct": 1.0}], tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        llm_judge.rated([waiting("a", "One.")], tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("said", "reference", "right"),
    [
        ("12.5", "12.5", True),
        ("Answer: 12.50", "12.5", True),
        ("So the distance is 12.5 m.", "12.5", True),
        ("It equals 1,200 units", "1200", True),
        ("x = -3", "-3", True),
        ("about 12", "12.5", False),
        ("The result is the left ventricle.", "left ventricle", True),
        ("the right one", "left", False),
        ("Answer: B", "b", True),
        ("a bee", "b", False),
        ("", "12.5", False),
        (":", "x", False),
    ],
)
def test_open_answers_are_read_as_mmmu_does(said, reference, right):
    assert long_video.is_open_answer(long_video.open_answer(said), reference) is right


def test_mlvu_takes_the_mean_over_tasks_whatever_their_size():
    rows = [{"kind": "count", "correct": 1.0}] * 3 + [{"kind": "ego", "correct": 0.0}]
    assert long_video.mlvu_reduce(rows)["m_avg"] == 50.0
    rated = [{"kind": "summary", "rating": 8.0, "answer": "x"}] * 2 + [
        {"kind": "sub_scene", "rating": 4.0, "answer": "x"}
    ]
    assert long_video.mlvu_open_reduce(rated)["g_avg"] == 6.0


def test_tempcompass_leaves_out_descriptions_that_wait_and_counts_them():
    rows = [
        {"kind": "yes_no", "aspect": "speed", "answer": "no", "correct": 0.0, "unparsed": False},
        {"kind": "captioning", "aspect": "speed", "answer": "A man.", "rating": None},
        {"kind": "captioning", "aspect": "order", "answer": "A dog.", "rating": 1.0},
    ]
    figures = long_video.tempcompass_reduce(rows)
    assert figures["accuracy"] == 50.0
    assert figures["judged"] == 50.0
    assert figures["accuracy/captioning"] == figures["accuracy/order"] == 100.0
    assert long_video.tempcompass_reduce([rows[1]]) == {"judged": 0.0}
    with pytest.raises(DataError, match="no rows"):
        long_video.tempcompass_reduce([])


def test_resamples_that_draw_nothing_but_waiting_descriptions_keep_no_interval_from_the_others():
    rows = [
        {"kind": "yes_no", "aspect": "speed", "answer": "no", "correct": 1.0, "unparsed": False, "group": "a"},
        {"kind": "captioning", "aspect": "speed", "answer": "A man.", "rating": None, "group": "b"},
    ]
    found = confidence.intervals(rows, long_video.tempcompass_reduce)
    assert (found["accuracy"].low, found["accuracy"].high) == (100.0, 100.0)
    assert found["accuracy"].resamples < found["judged"].resamples


def test_a_question_of_two_fine_dimensions_counts_once_in_their_coarse_one():
    rows = [
        {"dimension": ["OCR", "Counting"], "rating": 3.0, "answer": "x"},
        {"dimension": ["Causal Reasoning", "OCR"], "rating": 0.0, "answer": "y"},
    ]
    figures = long_video.mmbench_video_reduce(rows)
    assert figures["rating/FP-S"] == figures["rating/OCR"] == figures["rating/Perception"] == 1.5
    assert figures["rating/Counting"] == 3.0
    assert figures["rating/TR"] == figures["rating/Reasoning"] == 0.0


def test_shares_are_taken_within_groups_and_unnamed_groups_are_left_out():
    rows = [{"correct": 1.0, "kind": "a"}, {"correct": 0.0, "kind": ""}, {"correct": 0.0, "kind": "b"}]
    assert figures.shares(by=("kind",))(rows) == {
        "accuracy": pytest.approx(100 / 3),
        "accuracy/a": 100.0,
        "accuracy/b": 0.0,
    }


def test_tables_and_lines_name_the_fields_of_a_submission(tmp_path):
    rows = [{"id": "1", "answer": "a\tb\n", "other": 1}]
    assert json.loads(submissions.as_json(q="id", a="answer")(rows, tmp_path / "s").read_text()) == [
        {"q": "1", "a": "a\tb\n"}
    ]
    assert submissions.as_lines(a="answer")(rows, tmp_path / "s").read_text() == '{"a": "a\\tb\\n"}\n'
    assert submissions.as_table(q="id", a="answer")(rows, tmp_path / "s").read_text() == 'q\ta\n1\t"a\tb\n"\n'


@pytest.mark.parametrize("form", [submissions.as_json, submissions.as_lines, submissions.as_table])
def test_half_a_character_in_the_data_does_not_keep_a_submission_from_being_written(form, tmp_path):
    path = form(q="id", a="answer")([{"id": "\ud83d", "answer": "é"}], tmp_path / "s")
    assert "\\ud83d" in path.read_text(encoding="utf-8") and "é" in path.read_text(encoding="utf-8")


def test_resamples_of_captions_are_their_means_and_the_whole_set_is_the_figure():
    said = ["a red square", "two dogs run", "nobody knows"]
    rows = [
        {"caption": one, "references": [one, f"{one} here"], "unparsed": False, "group": str(place // 2)}
        for place, one in enumerate(said)
    ]
    groups, names = [rows[:2], rows[2:]], ["cider", "unparsed"]
    drawn = np.array([[0, 1], [0, 0], [1, 1]])
    whole, first, second = image_captions.reduce.resampled(groups, drawn, names)[:, 0]
    assert whole == pytest.approx(image_captions.reduce(rows)["cider"])
    assert whole == pytest.approx((2 * first + second) / 3)
    assert image_captions.reduce.resampled(groups, drawn, names)[:, 1].tolist() == [0, 0, 0]
    found = confidence.intervals(rows, image_captions.reduce)["cider"]
    assert found.low == pytest.approx(min(first, second))
    assert found.high == pytest.approx(max(first, second))
