"""Replaying recordings of the original code, and proof that a replay can fail."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from segue import parity, weights
from segue.checkpoints import model_folder
from segue.engine import Engine
from segue.errors import ConfigError, DataError
from segue.grounding import model as grounded
from segue.grounding import sam2
from segue.models.templates import TEMPLATES
from segue.parity.compare import Ours, Replay, compare_masks, compare_numbers, compare_rounded, judge, like_recorded
from segue.parity.preprocessing import question_of

GOLDEN = Path(__file__).parent / "golden"
FULL = Path(__file__).parents[2] / "shared" / "golden"
FULL_NAMES = sorted(
    path.parent.name
    for pattern in ("sa2va_internvl_*", "sa2va_i", "sa2va_qwen*", "qwen_vl")
    for path in FULL.glob(f"{pattern}/manifest.json")
)


@pytest.fixture(scope="module")
def run_segue():
    """Runs `segue ...` in this process."""
    from segue.cli.main import application

    return lambda *arguments: CliRunner().invoke(
        application(), [str(word) for word in arguments], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def recording():
    """InternLM2 and its tower, without SAM 2."""
    return parity.Recording.read(GOLDEN / "sa2va_internvl_internlm2")


@pytest.fixture(scope="module")
def subject(recording):
    """The recorded model; SAM 2, which the small recording leaves out, is random."""
    folder = recording.folder
    raw = weights.read_json(folder / "config.json")
    config = grounded.VisionLanguageConfig(
        mllm_config=model_folder.claiming(raw).architecture(raw),
        sam2_config=sam2.architecture(weights.read_json(folder / "sam2_config.json")),
        template=raw["template"],
    )
    model = grounded.build(config, dtype=torch.float32, device="cpu", fill=True)
    weights.load(model, folder / "language", model_folder.key_table(config), fresh=(r"grounder\..*",))
    return parity.sa2va.subject(Engine(model, model.family.processor(folder, config.mllm_config, config.template), {}))


def failures(report):
    return [check.name for seam in report.seams for check in seam.checks if check.verdict == "fail"]


@pytest.mark.parity
@pytest.mark.parametrize("seam", ["pre", "prompt", "llm", "e2e.image_visual_prompts", "e2e.text_only"])
def test_a_recorded_internlm2_gives_the_recorded_numbers(recording, subject, seam):
    report = parity.replay(recording, subject, [seam])
    (done,) = report.seams
    assert failures(report) == [] and report.passed
    assert done.count("unknown") == 0 and done.count("pass") >= 3


@pytest.mark.parity
def test_a_recording_without_weights_is_replayed_as_far_as_it_goes(run_segue):
    result = run_segue("parity", GOLDEN / "sa2va_internvl_qwen2", GOLDEN / "sa2va_internvl_internlm2", "--json")
    report = json.loads(result.stdout)
    verdicts = [{seam["name"]: seam["verdict"] for seam in one["seams"]} for one in report["recordings"]]
    assert result.exit_code == 0 and report["passed"]
    assert verdicts[0] == {"pre": "pass", "prompt": "pass"}
    assert verdicts[1]["llm"] == verdicts[1]["e2e.text_only"] == "skipped"


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    FULL_NAMES or [pytest.param("", marks=pytest.mark.skip(reason="full recordings do not lie in ../shared/golden"))],
)
def test_a_full_recording_passes_at_every_seam(name):
    full = parity.Recording.read(FULL / name)
    report = parity.replay(full, parity.load(full), full.seams)
    assert failures(report) == [] and report.passed
    assert {seam.name: seam.verdict for seam in report.seams} == dict.fromkeys(full.seams, "pass")
    assert [check.name for seam in report.seams for check in seam.checks if check.verdict == "unknown"] == []


@contextmanager
def nudged(tensor, by):
    """One number of a weight moved, and put back."""
    first = (0,) * tensor.ndim
    before = tensor[first].clone()
    with torch.no_grad():
        tensor[first] += by
    try:
        yield
    finally:
        with torch.no_grad():
            tensor[first] = before


@pytest.mark.parity
@pytest.mark.parametrize(
    ("place", "seam", "least"),
    [
        ("language_model.model.layers.0.self_attn.q_proj.weight", "llm", 1),
        ("language_model.model.norm.weight", "llm", 4),
        ("projector.3.bias", "e2e.image_visual_prompts", 2),
        ("vision_tower.encoder.layer.0.layernorm_before.weight", "e2e.image_visual_prompts", 1),
    ],
)
def test_one_weight_off_by_a_hundredth_fails_its_seam(recording, subject, place, seam, least):
    with nudged(subject.engine.model.mllm.get_parameter(place), 0.01):
        report = parity.replay(recording, subject, [seam])
    assert not report.passed and len(failures(report)) >= least


@pytest.mark.parity
def test_a_normalisation_constant_off_by_a_thousandth_fails_the_tiles(recording, subject, monkeypatch):
    monkeypatch.setattr("segue.models.internvl.family.MEAN", (0.486, 0.456, 0.406))
    report = parity.replay(recording, subject, ["pre"])
    assert failures(report) == [name for name in recording.outputs if name.startswith("pre.") and "tiles" in name]


@pytest.mark.parity
def test_a_changed_prompt_fails_with_exit_code_1(run_segue, monkeypatch):
    other = replace(TEMPLATES["qwen_chat"], user="<|im_start|>{text}<|im_end|>\n")
    monkeypatch.setitem(TEMPLATES, "qwen_chat", other)
    result = run_segue("parity", GOLDEN / "sa2va_internvl_qwen2", "--only", "prompt")
    assert result.exit_code == 1
    assert "prompt.text_only: ours is [" in result.output


@pytest.mark.parametrize(
    ("ours", "shape", "name", "what", "expected"),
    [
        (torch.arange(8), (8,), "x", "", [0, 1, 2, 3, 4, 5, 6, 7]),
        (torch.arange(8), (3,), "x_every3", "", [0, 3, 6]),
        (torch.arange(8), (2,), "x_every3", "rows/columns 2,5,...", [2, 5]),
        (torch.arange(8), (4,), "x", "every 2nd of (1,3,8)", [0, 2, 4, 6]),
        (torch.arange(9), (3,), "x_rows", "processor output, every 4th of 9 patch rows", [0, 4, 8]),
        (torch.arange(9), (3,), "x_rows", "every 4th patch row of 9 (fast processor)", [0, 4, 8]),
        (torch.arange(9), (3,), "x_rows", "", [0, 3, 6]),
        (torch.arange(8), (3,), "x_last3", "", [5, 6, 7]),
        (torch.arange(8), (3,), "x_tail3", "", [5, 6, 7]),
        (torch.arange(2), (2,), "x_tail3", "", [0, 1]),
        (torch.arange(8), (2,), "x_first2", "", [0, 1]),
        (torch.arange(8), (3,), "x_cls_and_first2", "", [0, 1, 2]),
        (torch.arange(8), (5,), "x_every3", "", None),
        (torch.arange(8), (1, 8), "x", "", None),
        (torch.arange(3), (4,), "x_tail4", "", None),
    ],
)
def test_the_recorded_part_of_a_value_is_found_by_name_and_shape(ours, shape, name, what, expected):
    part = like_recorded(ours, torch.Size(shape), name, what)
    assert (None if part is None else part.tolist()) == expected


@pytest.mark.parametrize(
    ("ours", "verdict", "difference"),
    [
        ([2.0, 4.0], "pass", 0.0),
        ([2.0, 4.0002], "pass", 2e-4),
        ([2.0, 4.001], "fail", 1e-3),
        ([math.nan, 4.0], "fail", math.nan),
    ],
)
def test_numbers_pass_within_a_ten_thousandth_of_the_scale(ours, verdict, difference):
    check = compare_numbers("x", torch.tensor(ours), torch.tensor([2.0, 4.0]), 4.0)
    assert check.verdict == verdict
    assert check.difference == pytest.approx(difference, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("steps", "share", "verdict"), [(1, 0.005, "pass"), (1, 0.02, "fail"), (2, 0.005, "fail"), (0, 0.0, "pass")]
)
def test_bfloat16_values_may_differ_by_one_step_in_few_places(steps, share, verdict):
    recorded = torch.linspace(1.0, 1.9, 1000).bfloat16().float()
    ours = recorded.clone()
    ours[: round(1000 * share)] += steps * 2**-7
    check = compare_rounded("x", ours, recorded)
    assert check.verdict == verdict
    assert check.difference == pytest.approx(steps * 2**-7 if share else 0.0)


@pytest.mark.parametrize(("logit", "verdict"), [(1e-6, "pass"), (-1e-6, "pass"), (1e-3, "fail"), (None, "fail")])
def test_a_pixel_may_differ_only_where_its_logit_is_as_good_as_zero(logit, verdict):
    recorded = torch.zeros(1, 4, 4, dtype=torch.bool)
    recorded[0, :2] = True
    ours, logits = recorded.clone(), torch.full((1, 4, 4), 5.0)
    ours[0, 3, 3], logits[0, 3, 3] = True, logit or 0.0
    check = compare_masks("x.masks", ours, recorded, None if logit is None else logits)
    assert check.verdict == verdict
    assert check.iou == pytest.approx(8 / 9) and check.note.startswith("1 of 16 pixels differ")


def test_the_language_side_of_a_replay_attends_as_the_recorded_one_did(subject):
    attended = {
        part.config._attn_implementation for part in subject.engine.model.mllm.modules() if hasattr(part, "config")
    }
    assert attended == {"eager"}


def test_a_recording_is_replayed_on_as_many_threads_as_it_was_made(recording, subject, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr("segue.parity.sa2va.replay", lambda *_: seen.append(torch.get_num_threads()) or Replay())
    parity.replay(recording, subject, ["llm"])
    other = parity.Recording(Path(), {"dtype": "float32"}, {}, {})
    parity.replay(other, subject, ["llm"])
    assert (recording.threads, other.threads) == (2, None)
    assert seen == [2, before] and torch.get_num_threads() == before


@pytest.fixture
def unnamed(tmp_path, picture):
    """A recording whose calls do not name their pictures, as those of the Qwen-VL flavours."""
    from PIL import Image

    for name in ("imgA", "imgB", "video_0", "video_1"):
        Image.fromarray(picture(30, 40, seed=len(name))).save(tmp_path / f"{name}.png")
    grids = {"one": [[1, 2, 4]], "lost": [[1, 9, 9]], "clip": [[1, 2, 2], [1, 2, 2]]}
    inputs = {f"e2e.{case}.image_grid_thw": torch.tensor(grid) for case, grid in grids.items()}
    inputs |= {f"e2e.{case}.prompt_ids": torch.zeros(3) for case in (*grids, "words")}
    cases = {case: {"text": "what?" if case == "words" else "<image>what?"} for case in (*grids, "words")}
    rows = {"imgA": {"grid_thw": [[1, 2, 4]]}, "imgB": {"grid_thw": [[1, 4, 2]]}, "form1": {"grid_thw": [[1, 2, 4]]}}
    return parity.Recording(tmp_path, {"cases": cases, "preprocess": rows}, inputs, {})


@pytest.mark.parametrize(("case", "kind", "count"), [("one", "image", 1), ("clip", "video", 2), ("words", None, 0)])
def test_a_call_that_names_no_picture_is_about_the_one_of_its_grid_or_the_clip(unnamed, case, kind, count):
    media = [part for part in question_of(unnamed, case).parts if not isinstance(part, str)]
    assert [(one.kind, one.count) for one in media] == ([(kind, count)] if kind else [])


def test_a_call_whose_grid_no_picture_makes_is_a_user_error(unnamed):
    with pytest.raises(DataError, match="does not tell which picture its call 'lost' is about"):
        question_of(unnamed, "lost")


def test_what_nothing_here_computes_is_shown_as_unknown_and_what_has_a_reason_as_skipped():
    outputs = {name: torch.ones(2) for name in ("llm.logits", "llm.surprise", "llm.half")}
    recording = parity.Recording(Path(), {}, {}, outputs)
    checks = judge(recording, "llm", Replay({"llm.logits": torch.ones(2)}, skipped={"llm.half": "too wide"}))
    assert {check.name: check.verdict for check in checks} == {
        "llm.logits": "pass",
        "llm.surprise": "unknown",
        "llm.half": "skipped",
    }
    assert parity.Seam("llm", tuple(checks)).verdict == "pass"
    assert parity.Seam("llm", tuple(checks[1:])).verdict == "unknown"


def test_positions_that_mean_nothing_are_left_out():
    recording = parity.Recording(Path(), {}, {}, {"llm.padded_logits": torch.tensor([[1.0, 2.0, 99.0]])})
    ours = Ours(torch.tensor([[1.0, 2.0, 3.0]]), where=torch.tensor([[True, True, False]]))
    assert judge(recording, "llm", Replay({"llm.padded_logits": ours}))[0].verdict == "pass"


def test_a_value_of_another_shape_fails_and_names_both_shapes():
    recording = parity.Recording(Path(), {}, {}, {"llm.logits": torch.zeros(1, 3)})
    check = judge(recording, "llm", Replay({"llm.logits": torch.zeros(1, 2)}))[0]
    assert check.verdict == "fail" and check.note == "ours is [1, 2], recorded is [1, 3]"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "manifest.json").unlink(),
            "is not a recording of the original code: it has no manifest.json",
        ),
        (lambda folder: (folder / "outputs.safetensors").write_bytes(b"\0" * 20), "outputs.safetensors is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "sa2va_other"}'), "no model family claims"),
        (lambda folder: (folder / "video_4.png").unlink(), "has 4 files video_<n>.png"),
    ],
)
def test_what_is_no_recording_is_a_user_error(run_segue, tmp_path, change, words):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in (GOLDEN / "sa2va_internvl_qwen2").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"]["video_one_object"]["n_frames"] = 5
    (folder / "manifest.json").write_text(json.dumps(manifest))
    change(folder)
    result = run_segue("parity", folder)
    assert result.exit_code == 2
    assert words in result.stderr and len(result.stderr.splitlines()) <= 3


def test_an_unknown_seam_is_refused_with_those_there_are(recording):
    with pytest.raises(ConfigError, match="has no seam 'llms'; it has pre, prompt, llm, e2e.image_visual_prompts"):
        parity.wanted_seams(recording, ["llms"])


def test_a_seam_is_named_by_its_first_parts(recording):
    assert parity.wanted_seams(recording, ["e2e", "llm"]) == ("llm", "e2e.image_visual_prompts", "e2e.text_only")


def test_a_call_without_its_picture_is_a_user_error(recording, subject, tmp_path):
    lost = parity.Recording(tmp_path, recording.manifest, recording.inputs, recording.outputs)
    with pytest.raises(DataError, match="lacks imgV.png"):
        parity.replay(lost, subject, ["prompt"])


@pytest.mark.parity
def test_the_recording_of_longva_passes(run_segue):
    result = run_segue("parity", GOLDEN / "longva", "--json")
    (report,) = json.loads(result.stdout)["recordings"]
    seams = {seam["name"]: seam["verdict"] for seam in report["seams"]}
    assert set(seams) == {"pre", "video", "image", "single_tile", "multi", "batch", "int8", "keys"}
    assert result.exit_code == 0 and set(seams.values()) == {"pass"}


@pytest.mark.parity
def test_a_wrong_number_in_a_recording_of_longva_is_found(tmp_path):
    recording = parity.Recording.read(GOLDEN / "longva")
    outputs = {name: tensor.clone() for name, tensor in recording.outputs.items()}
    outputs["video.tower"][0, 0, 0] += 1e-3
    outputs["image.greedy_new_ids"][0, -1] += 1
    wrong = replace(recording, outputs=outputs)
    report = parity.replay(wrong, parity.load(wrong), ["video", "image"])
    assert failures(report) == ["video.tower", "image.greedy_new_ids"]
