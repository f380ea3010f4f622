"""Every benchmark that is answered in words, from a folder in its official layout to its figures."""

import json

import pytest
from fixtures_vqa import FIXTURES

from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError
from segue.evals.benchmarks.vqa import WORDS
from segue.types import Answer, Media, Message

RECORDS = {one.name: one for one in WORDS}
BEST = {"perception": 400.0, "touchstone": 1000.0, "g_avg": 10.0, "rating": 3.0, "answers": None, "cider": None}
WORST = {"touchstone": 100.0, "g_avg": 2.0, "answers": None}


def rows_of(root, record, speak):
    """Rows as the runner makes them; `speak` gives the text of a sample's answer."""
    dataset = DATASETS[record.dataset](FIXTURES[record.name](root), record.split, **record.options)
    samples = [dataset.get(number, rng_for(0, 0, number)) for number in range(len(dataset))]
    assert len({sample.id for sample in samples}) == len(samples) > 1
    scored = [(sample, record.score(sample, Answer(speak(sample)))) for sample in samples]
    return json.loads(
        json.dumps([{**row, "id": sample.id, "group": sample.group or sample.id} for sample, row in scored])
    )


def perfect(sample):
    return (
        f"<answer>{sample.messages[-1].text}</answer>"
        if "<answer>" in sample.messages[0].text
        else sample.messages[-1].text
    )


def judged(record, rows, folder):
    """The rows after a judge who likes all that is not empty."""
    if record.judge is None:
        return rows
    path = folder / "judge.jsonl"
    best = [{"id": row["id"], "rating": row["scale"][1]} for row in rows if row.get("scale") and row["answer"]]
    path.write_text("".join(json.dumps(one) + "\n" for one in best), encoding="utf-8")
    return record.judge(rows, path)


def test_every_record_has_a_name_of_its_own_and_a_fixture():
    assert len(RECORDS) == len(WORDS)
    assert set(FIXTURES) == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_right_answers_give_the_best_figure_in_any_order_of_rows(name, tmp_path):
    record = RECORDS[name]
    rows = judged(record, rows_of(tmp_path, record, perfect), tmp_path)
    figures = record.reduce(rows)
    best = BEST.get(record.headline, 100.0)
    if record.headline == "cider":  # the best that somebody can say whom others do not repeat word for word
        assert figures["cider"] > 100
    assert best is None or figures[record.headline] == pytest.approx(best)
    assert record.reduce(rows[::-1]) == figures
    assert all(isinstance(value, float) for value in figures.values())
    if "unparsed" in figures:
        assert figures["unparsed"] == 0
    assert (record.headline == "answers") == (record.submit is not None and "submission" in record.protocol)


@pytest.mark.parametrize("name", RECORDS)
def test_empty_answers_give_the_worst_figure_and_no_rows_are_an_error(name, tmp_path):
    record = RECORDS[name]
    figures = record.reduce(judged(record, rows_of(tmp_path, record, lambda _: " "), tmp_path))
    if record.headline == "answers":
        assert figures["empty"] == 100
    else:
        assert figures[record.headline] == pytest.approx(WORST.get(record.headline, 0.0))
    assert figures.get("unparsed", 100) == 100
    with pytest.raises(DataError, match="no rows"):
        record.reduce([])


@pytest.mark.parametrize("name", RECORDS)
def test_the_files_that_a_record_names_are_those_that_are_read(name, tmp_path):
    record = RECORDS[name]
    root = FIXTURES[name](tmp_path)
    assert all(list(root.glob(pattern)) for pattern in record.files)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match="there is no"):
        DATASETS[record.dataset](tmp_path / "elsewhere", record.split, **record.options)
    with pytest.raises(ConfigError, match="known are"):
        DATASETS[record.dataset](root, "nowhere", **record.options)


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record.submit])
def test_a_submission_holds_every_row_that_is_to_be_sent(name, tmp_path):
    record = RECORDS[name]
    rows = rows_of(tmp_path, record, perfect)
    path = record.submit(rows, tmp_path / "sent")
    assert path.name.startswith("sent")
    if path.suffix == ".json":
        assert len(json.loads(path.read_text(encoding="utf-8"))) == len(rows)
    waiting = [row for row in rows if row.get("rating", 0) is None]
    if path.suffix == ".jsonl":
        assert len(path.read_text(encoding="utf-8").splitlines()) == len(waiting or rows)


# what stands behind the medium, word for word
PROMPTS = {
    "vqav2_val": "How many {squares} are there? Answer:",
    "vizwiz_test": "How many {squares} are there? Answer:",
    "docvqa_val": "How many {squares} are there? Answer:",
    "chartqa_human": "Question 1? Answer:",
    "scienceqa_test": "Context: Look at the leaves.\nQuestion: Which 1?\nOptions: A. oak\nB. apple tree\nC. pine\n"
    "Answer:",
    "mmbench_dev": "Context: A hint.\nQuestion: Tabs\tand\nlines?\nOptions: A. no\nB. yes\nAnswer:",
    "seed_bench_image": "\nQuestion: Which 1?\nOptions: A. thing a\nB. thing b\nC. thing c\nD. thing d\nAnswer:",
    "seed_bench_video": "\nQuestion: Which 3?\nOptions: A. thing a\nB. thing b\nC. thing c\nD. thing d\nAnswer:",
    "nocaps_val": "Describe the image in English:",
    "mme": "\nIs it blue? Please answer yes or no.",
    "refcoco_box_val": "<ref>thing 1</ref><box>",
    "touchstone_en": "\nWhat is 1?",
    "video_mme": "\n\nThese are the frames of a video. Select the best answer to the following multiple-choice "
    "question based on the video. Respond with only the letter (A, B, C, or D) of the correct option.\n\n"
    "Question: Which 2?\nA. Don't.\nB. Apples.\nC. Bees.\nD. Cups.\nAnswer: ",
    "mlvu_open": "\nCarefully watch this video and pay attention to every detail. Based on your observations, answer "
    "the given questions.\nTell 9_summary.",
    "mlvu_choice": "\nCarefully watch this video and pay attention to every detail. Based on your observations, select "
    "the best option that accurately addresses the question.\nQuestion: What?\nOptions:\n(A) one\n(B) two\n(C) three\n"
    "\nOnly give the best option.",
    "mmbench_video": "\nWhere is 1?",
    "longvideobench": "\nWhat comes at 1?\nA. a cat\nB. a dog\nC. a cup\nD. a bee\nE. an ant\n"
    "Answer with the option's letter from the given choices directly.",
    "video_mmmu": "\nYou should watch and learn the video content. Then apply what you learned to answer the following "
    "open-ended question. The image for this question is at the end of the video.\nSee <image 1>. How far?\n"
    "Add `Answer: {Your final answer}` at the end of your reply.",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_word_for_word_those_of_the_protocol(name, tmp_path):
    record = RECORDS[name]
    dataset = DATASETS[record.dataset](FIXTURES[name](tmp_path), record.split, **record.options)
    question = dataset.get(len(dataset) - 1, rng_for(0, 0, 0)).messages[0]
    assert question.role == "user"
    assert isinstance(question.parts[0], Media)
    shown = max(place for place, part in enumerate(question.parts) if isinstance(part, Media))
    assert "".join(question.parts[shown + 1 :]) == PROMPTS[name]


def test_examples_stand_before_the_question_with_nothing_between_and_are_the_same_each_time(tmp_path):
    record = RECORDS["okvqa_val_4shot"]
    dataset = DATASETS["vqa"](FIXTURES["okvqa_val_4shot"](tmp_path), "val", **record.options)
    first, again, other = (dataset.get(row, rng_for(seed, 0, 0)).messages[0] for row, seed in ((0, 0), (0, 9), (1, 0)))
    texts = [part for part in first.parts if isinstance(part, str)]
    assert [isinstance(part, Media) for part in first.parts] == [True, False] * 5
    assert texts == [part for part in again.parts if isinstance(part, str)]
    assert texts[:4] != [part for part in other.parts if isinstance(part, str)][:4]
    assert all(text == f"Question {text[9]}? Answer: b{text[9]}" for text in texts[:4])
    assert len(set(texts[:4])) == 4
    assert texts[4] == "Is it green? Answer:"


def test_subtitles_stand_in_the_question_where_they_are_shown(tmp_path):
    record = RECORDS["video_mme_subtitles"]
    dataset = DATASETS[record.dataset](FIXTURES[record.name](tmp_path), record.split, **record.options)
    spoken, silent = (dataset.get(row, rng_for(0, 0, 0)).messages[0].text for row in (0, 2))
    # six frames at two a second: 0.5 and 1 lie in the first line, 2.5 in the second
    assert "subtitles are listed below:\nHello there.\nHello there.\nGood bye.\nSelect the best" in spoken
    assert "subtitles are listed below:\n\nSelect the best" in silent


def test_a_question_of_adaptation_shows_its_image_behind_the_video(tmp_path):
    record = RECORDS["video_mmmu"]
    dataset = DATASETS[record.dataset](FIXTURES[record.name](tmp_path), record.split, **record.options)
    shown = [part.kind for part in dataset.get(2, rng_for(0, 0, 0)).messages[0].parts if isinstance(part, Media)]
    assert shown == ["video", "image"]
    assert [dataset.medium_of(row) for row in range(3)] == [
        "/videos/Art/dev_Art_1.mp4",
        "/videos/Art/dev_Art_2.mp4",
        "",
    ]


def test_hidden_truths_leave_the_reference_empty(tmp_path):
    for name in ("vqav2_testdev", "vizwiz_test", "docvqa_test", "mmbench_test"):
        record = RECORDS[name]
        dataset = DATASETS[record.dataset](FIXTURES[name](tmp_path / name), record.split, **record.options)
        assert dataset.get(0, rng_for(0, 0, 0)).messages[-1] == Message("assistant", ())


def test_a_judge_is_given_the_question_without_what_is_said_around_it(tmp_path):
    rows = rows_of(tmp_path, RECORDS["mlvu_open"], lambda _: "A man.")
    assert [row["question"] for row in rows] == ["Tell 8_sub_scene.", "Tell 9_summary."]
    assert [row["scoring_points"] for row in rows] == ["cooks", ""]


def test_questions_about_one_video_are_told_to_belong_together(tmp_path):
    record = RECORDS["video_mme"]
    dataset = DATASETS[record.dataset](FIXTURES[record.name](tmp_path), record.split, **record.options)
    assert [dataset.medium_of(row) for row in range(3)] == ["video/v0.mp4", "video/v0.mp4", "video/v1.mp4"]
    assert dataset.get(0, rng_for(0, 0, 0)).frames == (0, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def demo():
    import segue

    return segue.load("demo", device="cpu", dtype="fp32")


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_runs_with_a_model(name, tmp_path, demo):
    from segue.options import Options

    record = RECORDS[name]
    dataset = DATASETS[record.dataset](FIXTURES[name](tmp_path), record.split, **record.options)
    sample = dataset.get(0, rng_for(0, 0, 0))
    options = Options(**{**record.settings, "max_new_tokens": 2})
    answer = demo.answer(sample.messages[:-1], options)
    if shots := record.options.get("shots"):
        assert answer.usage.visual_tokens == (shots + 1) * demo.processor.tile_tokens
    row = record.score(sample, answer)
    assert record.reduce([{**row, "id": sample.id, "group": sample.group}])
