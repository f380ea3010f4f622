import json
from pathlib import Path

import numpy as np
import pytest
from pictures import BLOCK_AREA, HEIGHT, WIDTH, make_frames, make_image

from segue.cli import chat
from segue.geometry import masks
from segue.models.qwen_vl.family import parse
from segue.types import Answer, Finished, Media, Region, TextDelta


@pytest.fixture
def photo(tmp_path) -> Path:
    return make_image(tmp_path / "street.png", shift=5)


@pytest.fixture
def talk(run_segue, photo):
    """Types lines into `segue chat` about a photo; gives what it says on stdout and stderr."""

    def run(*lines: str, about: Path | None = photo, options: tuple = ()):
        about_what = () if about is None else (about,)
        result = run_segue("chat", *about_what, *options, typed="".join(f"{line}\n" for line in lines))
        assert result.exit_code == 0
        return result.stdout, result.stderr

    return run


@pytest.fixture
def interrupted(fake, monkeypatch):
    """The next answer is interrupted by Ctrl-C after its first words; lists the answers that were closed."""
    closed = []
    original = fake.Engine.stream_answer

    def stream(self, messages, options, **_):
        monkeypatch.setattr(fake.Engine, "stream_answer", original)
        events = original(self, messages, options)
        try:
            yield next(events)
            raise KeyboardInterrupt
        finally:
            closed.append(messages[-1].text)

    monkeypatch.setattr(fake.Engine, "stream_answer", stream)
    return closed


def test_one_question_is_answered_on_stdout_with_a_table_on_stderr(run_segue, photo):
    run = run_segue("chat", photo, "--ask", "Where is the bright part?")
    assert (run.exit_code, run.stdout) == (0, "Turn 1: bright\n")
    (row,) = (line.split() for line in run.stderr.splitlines() if "bright" in line)
    assert row == ["1", "bright", "0.06", "100%", f"{BLOCK_AREA / HEIGHT / WIDTH:.1%}"]


def test_one_question_as_json_is_the_whole_answer(run_segue, photo, tmp_path):
    run = run_segue("chat", photo, "--ask", "bright?", "--json", "-o", tmp_path / "out")
    answer = json.loads(run.stdout)
    assert (answer["text"], answer["folder"]) == ("Turn 1: bright", str(tmp_path / "out" / "answer-001"))
    assert answer["regions"][0]["box"] == [5, 4, 17, 12] and run.stderr == ""


def test_a_dialogue_remembers_its_turns(talk):
    stdout, stderr = talk("What is dark?", "", "And what is bright?", "Thanks")
    assert stdout == "Turn 1: dark\nTurn 2: bright\nTurn 3:\n"
    assert stderr.count("presence") == 2


def test_the_medium_is_shown_once_and_answers_come_back_without_their_terminator(talk, fake, monkeypatch):
    original, seen, prompts = fake.Engine.stream_answer, [], []

    def stream(self, messages, options, *, last_prompt):
        seen.append(messages)
        prompts.append(last_prompt)
        return original(self, messages, options)

    monkeypatch.setattr(fake.Engine, "stream_answer", stream)
    talk("dark?", "bright?")
    first, answer, second = seen[1]
    assert prompts[0] is prompts[1]
    assert [type(part).__name__ for part in first.parts] == ["Media", "str"]
    assert (answer.role, answer.parts) == ("assistant", ("Turn 1: dark [SEG]",))
    assert second.parts == ("bright?",)


def test_text_alone_needs_no_medium(talk):
    assert talk("Hello", about=None)[0] == "Turn 1:\n"


def test_reset_and_open_begin_anew(talk, tmp_path):
    walk = make_frames(tmp_path / "a walk")
    stdout, stderr = talk("dark?", "/reset", "dark?", f"/open {walk}", "bright?")
    assert stdout == "Turn 1: dark\nTurn 1: dark\nTurn 1: bright\n"
    assert "the dialogue is forgotten" in stderr and "a walk: video, 48 x 32, 3 frames" in stderr


def test_another_picture_is_shown_within_the_dialogue(talk, fake, monkeypatch, tmp_path):
    def stream(self, messages, options, **_):
        shown.append([part.name for message in messages for part in message.parts if isinstance(part, Media)])
        yield from original(self, messages, options)

    shown, original = [], fake.Engine.stream_answer
    monkeypatch.setattr(fake.Engine, "stream_answer", stream)
    other = make_image(tmp_path / "other.png", shift=0)
    _, stderr = talk("One?", f"/show {other}", "Two?", "Three?", "/reset", "Four?")
    assert f"other.png: image, {WIDTH} x {HEIGHT}" in stderr
    assert shown == [["street.png"], ["street.png", "other.png"], ["street.png", "other.png"], ["other.png"]]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_no_piece_of_a_mark_or_a_place_is_printed(talk, fake, monkeypatch, cut):
    raw = "图<ref>a cat</ref><box>(1,2),(3,4)</box> < 1 metre.<|im_end|>"

    def stream(self, messages, options, **_):
        yield from (TextDelta(raw[start : start + cut]) for start in range(0, len(raw), cut))
        cat = Region("a cat", box=np.array([1.0, 2, 3, 4]))
        yield Finished(Answer("图a cat < 1 metre.", (cat,), raw))

    monkeypatch.setattr(fake.Engine, "stream_answer", stream)
    monkeypatch.setattr(fake.Engine.model.family, "parse", parse)
    stdout, stderr = talk("Where?")
    assert stdout == "图a cat < 1 metre.\n"
    assert ["1", "a", "cat", "1", "2", "3", "4"] in [line.split() for line in stderr.splitlines()]


def test_quit_leaves_and_help_tells_how(talk):
    stdout, stderr = talk("/help", "/quit", "dark?")
    assert stdout == "" and "/save DIR" in stderr


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("/open gone.png", "gone.png"),
        ("/open", "/open needs a path"),
        ("/save", "/save needs a path"),
        ("/save out", "no answer"),
        ("dark?\n/save {photo}/deeper", "street.png is no folder"),
        ("/jump", "unknown command /jump"),
        ("<image> and <image>", "placeholders"),
    ],
)
def test_a_mistake_is_told_and_the_session_goes_on(talk, photo, line, text):
    stdout, stderr = talk(line.replace("{photo}", str(photo)), "bright?")
    assert text in stderr and stderr.count("error: ") == 1
    assert stdout.endswith("bright\n")


def test_ctrl_c_stops_the_answer_and_keeps_the_session(talk, interrupted):
    stdout, stderr = talk("dark?", "bright?")
    assert interrupted == ["\ndark?"]
    assert stdout.endswith("Turn 1: bright\n") and "stopped" in stderr


def test_ctrl_c_on_the_only_question_is_exit_130(run_segue, photo, interrupted):
    assert run_segue("chat", photo, "--ask", "dark?").exit_code == 130


def test_answers_that_point_at_something_are_kept_one_by_one(talk, tmp_path):
    out = tmp_path / "out"
    (out / "answer-007").mkdir(parents=True)
    talk("dark?", "Thanks", "bright?", options=("-o", out, "--formats", "png"))
    assert sorted(path.name for path in out.iterdir()) == ["answer-007", "answer-008", "answer-009"]
    assert sorted(path.name for path in (out / "answer-009").iterdir()) == ["masks", "result.json"]


def test_a_file_in_the_place_of_the_output_folder_is_a_user_error(run_segue, photo):
    run = run_segue("chat", photo, "--ask", "dark?", "-o", photo)
    assert run.exit_code == 2 and "a file is in the way" in run.stderr


def test_an_interrupted_answer_leaves_no_files(talk, fake, monkeypatch, tmp_path):
    def stream(self, messages, options, **_):
        for event in original(self, messages, options):
            yield event
            if type(event).__name__ == "FrameMasks":
                raise KeyboardInterrupt

    original = fake.Engine.stream_answer
    monkeypatch.setattr(fake.Engine, "stream_answer", stream)
    talk("dark?", options=("-o", tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_save_writes_what_o_would_have_written(talk, tmp_path):
    walk = make_frames(tmp_path / "walk")
    talk("bright and dark?", f"/save {tmp_path / 'saved'}", about=walk, options=("-o", tmp_path / "out"))
    kept, saved = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "out" / "answer-001", tmp_path / "saved")
    )
    assert len(kept) == 6 and saved == kept


def test_save_replaces_an_answer_and_nothing_else(talk, tmp_path):
    saved, mine = tmp_path / "saved", tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("")
    _, stderr = talk("bright?", f"/save {saved}", "dark?", f"/save {saved}", f"/save {mine}")
    assert json.loads((saved / "result.json").read_text())["regions"][0]["phrase"] == "dark"
    assert "holds something else" in stderr and [path.name for path in mine.iterdir()] == ["diary.txt"]
    (saved / "diary.txt").write_text("")
    assert "holds something else" in talk("bright?", f"/save {saved}")[1] and (saved / "diary.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("gone.png",), "gone.png"),
        (("--json",), "--json needs --ask"),
        (("--formats", "gif"), "unknown output format"),
        (("--frames", "all"), "unknown frame plan"),
        (("--model", "fake/broken"), "lacks the tensor"),
    ],
)
def test_a_wrong_start_is_a_user_error(run_segue, arguments, text):
    run = run_segue("chat", *arguments)
    assert run.exit_code == 2 and text in run.stderr


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Sure, [SEG].<|im_end|>", "Sure, [SEG]."),
        ("Sure, [SEG].<|im_end|>\n", "Sure, [SEG]."),
        ("<p>a cat</p> [SEG] </s>", "<p>a cat</p> [SEG]"),
        ("two<|im_end|><|endoftext|>", "two"),
        ("cut sho", "cut sho"),
        ("a <|im_end|> within", "a <|im_end|> within"),
        ("", ""),
    ],
)
def test_a_turn_of_the_dialogue_has_no_terminator(raw, expected):
    assert chat.spoken(Answer("", raw_text=raw)) == expected


def test_the_share_of_the_picture_is_a_mean_over_the_frames_that_show_the_object():
    dense = np.zeros((3, 10, 10), dtype=bool)
    dense[0, :5] = True
    dense[2, :1] = True
    track = masks.track(dense, np.arange(3))
    assert chat.area_share(track) == pytest.approx(0.3)
    assert chat.area_share(masks.track(dense[1:2], np.arange(1))) == 0.0


def test_a_home_that_nobody_has_leaves_the_dialogue_as_it_was(talk):
    stdout, stderr = talk("One?", "/open ~nobody-of-this-name/a.png", "Two?")
    assert "~nobody-of-this-name/a.png: no such file" in stderr and len(stdout.splitlines()) == 2
