"""Runs with something that answers without a model: what is asked, in which spec, and what is on the disk."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from asked import Bright, Recorded, write_folder

from segue import loading
from segue.data.base import Rows
from segue.errors import ConfigError, DataError, SegueError
from segue.evals.metrics import own_masks
from segue.evals.metrics.llm_judge import rated, ratings, to_rate
from segue.evals.run import report, rows, runner
from segue.evals.run.evaluation import Evaluation, EvaluationSpec, read_run, units
from segue.files import alone
from segue.media import read_image
from segue.types import Media, Message, Sample


@pytest.fixture
def job(tmp_path):
    folder = write_folder(tmp_path / "mine")
    return Evaluation(benchmark=own_masks.benchmark("test", phrase="square"), data=folder, out=tmp_path / "out")


def go(job, asked, progress=None, *, batch=1):
    dataset = job.open_data()
    runner.run(job, dataset, lambda: asked, progress or Recorded(), batch=batch)
    return report.RunFolder(out=job.out, benchmark=job.benchmark, total=job.count(dataset))


def test_a_model_without_masks_is_not_asked_for_them(monkeypatch, tmp_path):
    talker = Bright()
    monkeypatch.setattr(Bright, "model", SimpleNamespace(grounder=None))
    monkeypatch.setattr(loading, "load", lambda *_, **__: talker)
    spec = EvaluationSpec(model="a talker", on="refcoco_val", data=tmp_path, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="a talker has no grounder, so that it has no masks to score on refcoco_val"):
        spec.load()
    assert replace(spec, on="scenes_test").load() is talker, "closed questions need none"


def test_every_row_is_asked_once_and_its_score_is_on_the_disk(job):
    bright, progress = Bright(), Recorded()
    scored = go(job, bright, progress).scored()
    assert len(bright.asked) == 6 and progress.started == [(6, 0)] and progress.steps == [None] * 6
    assert [row["dice"] for row in scored] == [1.0] * 6
    assert {row["group"] for row in scored} == {"patient0", "patient1", "patient2"}
    lines = list(rows.lines(job.out / "rows.jsonl"))
    assert [line["index"] for line in lines] == list(range(6))
    assert lines[0]["asked"]["prompts"] == ["\nPlease segment square in this image."]


def test_a_finished_run_asks_nothing_and_a_limit_that_grows_goes_on(job):
    go(replace(job, limit=2), Bright())
    bright, progress = Bright(), Recorded()
    go(job, bright, progress)
    assert progress.started == [(6, 2)] and len(bright.asked) == 4
    assert len(go(job, again := Bright()).scored()) == 6 and again.asked == []


def test_shards_of_any_number_make_the_whole(job, tmp_path):
    whole = go(job, Bright()).scored()
    for count in (2, 3, 4):
        part = replace(job, out=tmp_path / f"out{count}")
        asked = [Bright() for _ in range(count)]
        for number, one in enumerate(asked):
            run = go(replace(part, shard=(number, count)), one)
        assert run.scored() == whole
        assert sum(len(one.asked) for one in asked) == 6


def test_a_run_goes_on_in_another_number_of_shards_than_it_began_in(job):
    whole = go(replace(job, shard=(0, 2)), Bright())
    assert len(whole.scored()) == 3
    bright = Bright()
    assert len(go(job, bright).scored()) == 6 and len(bright.asked) == 3


def test_two_processes_do_not_do_the_same_rows(job):
    go(replace(job, limit=1), Bright())
    with alone(job.out / "rows.jsonl"):
        with pytest.raises(ConfigError, match="another run is writing"):
            go(job, Bright())
        with pytest.raises(ConfigError, match="another run is writing"):
            go(replace(job, shard=(0, 2)), Bright())


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"settings": {"threshold": 0.3}}, "settings"),
        ({"settings": {"keep_logits": False}}, "protocol"),
        ({"benchmark": own_masks.benchmark("all", phrase="square")}, "split"),
    ],
)
def test_another_way_of_asking_is_not_mixed_in(job, changed, what):
    go(replace(job, limit=1), Bright())
    with pytest.raises(ConfigError, match=f"another run: .*{what}"):
        go(replace(job, **changed), Bright())


def test_another_model_is_not_mixed_in_but_another_machine_may_go_on(job):
    go(replace(job, limit=1), Bright())
    with pytest.raises(ConfigError, match="model model_hash differ"):
        go(job, Bright(level=50))

    class Elsewhere(Bright):
        @property
        def lineage(self):
            return {**super().lineage, "device": "cuda:1"}

    assert len(go(job, Elsewhere()).scored()) == 6


def test_changing_what_a_benchmark_fixes_makes_another_protocol(job):
    assert job.protocol == "own-masks/1"
    assert replace(job, settings={"threshold": 0.3}).protocol == "own-masks/1"
    assert replace(job, settings={"keep_logits": False}).protocol == "own-masks/1 (keep_logits=False)"
    with pytest.raises(ConfigError, match="sets tempo, which no answer knows"):
        _ = replace(job, settings={"tempo": 1}).options


def test_a_failure_is_listed_has_no_score_and_is_asked_again(job):
    (job.data / "test/images/patient0/1.png").write_bytes(b"damaged")
    progress = Recorded()
    run = go(job, Bright(), progress)
    made = report.gather(run)
    assert (made["n"], made["failed"], made["figures"]["dice"]) == (5, 1, 1.0)
    assert [step for step in progress.steps if step] != [] and len(progress.steps) == 6
    write_folder(job.data)
    bright = Bright()
    made = report.gather(go(job, bright))
    assert (made["n"], made["failed"], len(bright.asked)) == (6, 0, 1)


def test_a_model_that_fails_at_everything_is_given_up(job, monkeypatch):
    monkeypatch.setattr(runner, "HOPELESS", 3)
    progress = Recorded()
    with pytest.raises(SegueError, match="the first 3 questions all failed"):
        go(job, Bright(broken=("square",)), progress)
    assert len(progress.steps) == 3


def test_want_of_memory_is_a_failure_and_no_score(job):
    class Small(Bright):
        def answer_all(self, dialogues, options, *, rows):
            if len(self.asked) == 1:
                self.asked.append([])
                raise torch.OutOfMemoryError("no room")
            return super().answer_all(dialogues, options, rows=rows)

    made = report.gather(go(job, Small()))
    assert made["failed"] == 1 and made["failures"][0]["kind"] == "OutOfMemoryError"


def questions(number_of_media, each, name="tests"):
    """Rows about images, questions about one of them apart from each other."""
    media = [Media(np.full((4, 4, 3), 15 * number, np.uint8), "image", (4, 4)) for number in range(number_of_media)]
    listed = [(number, turn) for turn in range(each) for number in range(number_of_media)]

    def make(row, _):
        number, turn = row
        messages = (Message.user(f"question {turn}", media[number]), Message("assistant", ("Yes.",)))
        return Sample(f"{number}-{turn}", "chat", messages, frames=(0,))

    return Rows(name, listed, make, lambda row: str(row[0]))


def said(sample, answer):
    return {"text": answer.text}


@pytest.fixture
def chat(job):
    record = replace(job.benchmark, score=said, reduce=lambda rows: {"n": float(len(rows))}, headline="n")
    return replace(job, benchmark=replace(record, thresholds=(), settings={}, is_private=False))


def test_questions_about_one_medium_are_asked_together(chat):
    bright, dataset = Bright(), questions(3, 2)
    runner.run(chat, dataset, lambda: bright, Recorded(), batch=3)
    assert bright.asked == [["\nquestion 0", "\nquestion 1"]] * 3
    assert units(dataset, 4) == [[0, 3], [1], [2]]


def test_many_questions_about_one_medium_are_asked_a_few_at_a_time():
    assert [len(unit) for unit in units(questions(1, 70), 70)] == [32, 32, 6]


def test_questions_about_several_images_are_one_batch_in_which_each_image_is_one_medium(chat):
    class Counting(Bright):
        def answer_all(self, dialogues, options, *, rows):
            self.media = [messages[0].parts[0] for messages in dialogues]
            return super().answer_all(dialogues, options, rows=rows)

    bright = Counting()
    runner.run(chat, questions(3, 2), lambda: bright, Recorded(), batch=6)
    assert [len(asked) for asked in bright.asked] == [6]
    assert len({id(media) for media in bright.media}) == 3


def test_a_batch_holds_no_more_pixels_than_are_allowed(chat, monkeypatch):
    monkeypatch.setattr(runner, "_DECODED", 3 * 16 * 3)
    bright = Bright()
    runner.run(chat, questions(4, 1), lambda: bright, Recorded(), batch=4)
    assert [len(asked) for asked in bright.asked] == [3, 1]


def test_fewer_are_computed_at_once_from_where_they_did_not_fit_into_memory(chat, caplog):
    class Small(Bright):
        def answer_all(self, dialogues, options, *, rows):
            if min(len(dialogues), rows) > 2:
                raise torch.OutOfMemoryError("no room")
            return super().answer_all(dialogues, options, rows=rows)

    bright = Small()
    runner.run(chat, questions(16, 1), lambda: bright, Recorded(), batch=8)
    assert [len(asked) for asked in bright.asked] == [8, 8]
    assert [record.getMessage() for record in caplog.records] == [
        "8 questions at once do not fit into memory; from here on 4 are asked",
        "4 questions at once do not fit into memory; from here on 2 are asked",
    ]


def test_an_image_is_decoded_once_for_all_questions_about_it(job, monkeypatch):
    decoded = []

    def counted(media):
        decoded.append(media.name)
        return read_image(media)

    monkeypatch.setattr(runner, "read_image", counted)
    go(job, Bright(), batch=4)
    assert sorted(decoded) == [f"{number}.png" for number in range(6)]


def test_what_cannot_be_asked_together_is_asked_one_by_one(chat):
    bright = Bright(broken=("question 1",))
    runner.run(chat, questions(1, 3), lambda: bright, Recorded())
    lines = list(rows.lines(chat.out / "rows.jsonl"))
    assert [(line["id"], line["status"]) for line in lines] == [("0-0", "ok"), ("0-1", "failed"), ("0-2", "ok")]
    assert lines[1]["error"] == "cannot ask '\\nquestion 1'"


def test_a_unit_that_was_stopped_in_its_middle_is_asked_whole_and_counted_once(chat):
    whole, dataset = Bright(), questions(1, 3)
    runner.run(chat, dataset, lambda: whole, Recorded())
    path = chat.out / "rows.jsonl"
    complete = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(complete[0] + complete[1][:-5])
    again, progress = Bright(), Recorded()
    runner.run(chat, dataset, lambda: again, progress)
    assert again.asked == whole.asked and progress.started == [(3, 1)] and len(progress.steps) == 2
    assert len(rows.gathered(chat.out)) == 3


def test_scoring_anew_needs_no_model_and_changes_nothing_else(job):
    run = go(job, Bright())
    before = (job.out / "rows.jsonl").read_bytes()
    runner.rescore(job, job.open_data())
    assert (job.out / "rows.jsonl").read_bytes() == before
    other = replace(job.benchmark, score=lambda sample, answer: {"is_found": bool(answer.regions)})
    runner.rescore(replace(job, benchmark=other), job.open_data())
    assert run.scored()[0] == {"is_found": True, "id": run.lines[0]["id"], "group": "patient0"}


def test_answers_keep_their_ratings_when_others_are_rated_or_all_are_scored_anew(chat, tmp_path):
    judged = replace(chat.benchmark, score=to_rate((1.0, 10.0)), reduce=ratings("score"), judge=rated)
    chat, dataset = replace(chat, benchmark=judged), questions(1, 3)
    runner.run(chat, dataset, Bright, Recorded())
    for number, rating in (("0", 7), ("1", 4), ("0", 2)):
        (tmp_path / number).write_text(json.dumps({"id": f"0-{number}", "rating": rating}))
        runner.rescore(chat, dataset, ratings=tmp_path / number)
    runner.rescore(chat, dataset)
    assert [line["row"]["rating"] for line in rows.lines(chat.out / "rows.jsonl")] == [2.0, 4.0, None]
    assert len(read_run(chat.out)["judged"].split(", ")) == 3


def test_scoring_anew_with_other_data_is_refused(job, tmp_path):
    go(job, Bright())
    other = replace(job, data=write_folder(tmp_path / "other", images=4))
    with pytest.raises(DataError, match="was answered, but test has 4 rows|but other/test has 4 rows"):
        runner.rescore(other, other.open_data())
    (job.data / "test/images/patient0/0.png").rename(job.data / "test/images/patient0/7.png")
    (job.data / "test/masks/patient0/0.png").rename(job.data / "test/masks/patient0/7.png")
    with pytest.raises(DataError, match="the data are not those that were asked"):
        runner.rescore(job, job.open_data())


def test_a_record_says_where_rows_come_from(job):
    go(job, Bright())
    record = json.loads((job.out / "run.json").read_text())
    assert record["benchmark"] == "own_masks" and record["rows"] == 6 and record["protocol"] == "own-masks/1"
    assert record["model"]["model_hash"] == "bright-100" and record["settings"]["threshold"] == 0.5
    with pytest.raises(ConfigError, match="holds no evaluation"):
        read_run(job.data)
