"""The model for VLMEvalKit, against a stand-in of what it derives from."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from segue.errors import DataError
from segue.evals.harnesses import harness_adapter
from segue.options import Options
from segue.types import Media

KINDS = {
    "MMBench_DEV_EN": "MCQ",
    "MME": "Y/N",
    "HallusionBench": "Y/N",
    "POPE": "Y/N",
    "ChartQA_TEST": "VQA",
    "MathVista_MINI": "VQA",
    "LLaVABench": "VQA",
    "COCO_VAL": "Caption",
    "MMDU": "MT",
    "MME-RealWorld": "MCQ",
    "Video-MME": "Video-MCQ",
}


class Base:
    """What VLMEvalKit's base class does around an adapter."""

    def dump_image(self, line, dataset):
        return [f"{dataset}/{number}.jpg" for number in range(line["pictures"])]

    def generate(self, message, dataset=None):
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


@pytest.fixture
def model(monkeypatch):
    """A model of the adapter over stand-ins, whose engine tells what it was asked."""
    for name in ("vlmeval", "vlmeval.dataset", "vlmeval.vlm", "vlmeval.vlm.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    kinds = sys.modules["vlmeval.dataset"]
    kinds.DATASET_TYPE = KINDS.__getitem__
    kinds.DATASET_MODALITY = lambda name: "VIDEO" if name.startswith("Video") else "IMAGE"
    sys.modules["vlmeval.vlm.base"].BaseModel = Base
    monkeypatch.delitem(sys.modules, "segue.evals.harnesses.vlmevalkit", raising=False)
    module = importlib.import_module("segue.evals.harnesses.vlmevalkit")
    monkeypatch.setattr(harness_adapter, "load", lambda model, **how: SimpleNamespace(answer_all=told, lineage={}))
    yield module.Segue("m", device="cpu", max_tiles=6)
    sys.modules.pop("segue.evals.harnesses.vlmevalkit", None)


def told(dialogues, options, *, rows):
    (messages,) = dialogues
    media = next((part for part in messages[0].parts if isinstance(part, Media)), None)
    shown = "nothing" if media is None else f"{media.kind} of {media.count}"
    assert isinstance(options, Options) and options.max_tiles == 6 and not options.keep_masks
    said = f"{shown}: {messages[0].text.strip()}"
    return [SimpleNamespace(text=said, raw_text=said)]


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_a_message_is_answered_about_what_it_shows(model, picture):
    image, text = {"type": "image", "value": picture}, {"type": "text", "value": "What?"}
    assert model.generate([image, text], "MME") == "image of 1: What?"
    assert model.generate([text]) == "nothing: What?"
    assert model.generate([image, text, image, text]) == "video of 2: What?\nWhat?"


def test_a_video_is_shown_as_itself(model, tmp_path, picture):
    (tmp_path / "clip").mkdir()
    for number in range(3):
        (tmp_path / f"clip/{number}.png").write_bytes((tmp_path / "a.png").read_bytes())
    parts = [{"type": "video", "value": str(tmp_path / "clip")}, {"type": "text", "value": "What?"}]
    assert model.VIDEO_LLM and model.generate(parts, "Video-MME") == "video of 3: What?"


def test_the_number_of_frames_of_a_data_set_is_read_when_a_question_is_asked(model, monkeypatch):
    asked = []
    monkeypatch.setattr(model._adapter, "answer", lambda request: asked.append(request.options.frames) or "A.")
    for nframe in (None, 64, 128):
        model.nframe = nframe
        model.generate([{"type": "text", "value": "What?"}], "Video-MME")
    assert asked == ["auto", "uniform:64", "uniform:128"]


def test_sound_is_refused(model):
    with pytest.raises(DataError, match="parts of audio; expected text, image and video"):
        model.generate_inner([{"type": "audio", "value": "a.wav"}])


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [(name, kind in ("MCQ", "Y/N", "VQA") and name != "MME-RealWorld") for name, kind in KINDS.items()],
)
def test_prompts_of_ones_own_are_for_image_benchmarks(model, dataset, expected):
    assert model.use_custom_prompt(dataset) is expected


@pytest.mark.parametrize(
    ("dataset", "line", "expected"),
    [
        (
            "MMBench_DEV_EN",
            {"question": "Which?", "hint": "Look.", "A": "one", "B": 2, "C": float("nan"), "D": None},
            "Look.\nWhich?\nA. one\nB. 2\nAnswer with the option's letter from the given choices directly.",
        ),
        ("MMBench_DEV_EN", {"question": "哪个?", "A": "一"}, "哪个?\nA. 一\n请直接回答选项字母。"),
        ("MMBench_DEV_EN", {"question": "Which?"}, "Which?\nPlease answer the question directly."),
        ("MMBench_DEV_EN", {"question": "哪个?", "hint": ""}, "哪个?\n请直接回答问题。"),
        ("MME", {"question": "Is it?"}, "Is it? Answer the question using a single word or phrase."),
        (
            "HallusionBench",
            {"question": "Is it?"},
            "Is it? Please answer yes or no. Answer the question using a single word or phrase.",
        ),
        ("POPE", {"question": "Is it?"}, "Is it?"),
        ("ChartQA_TEST", {"question": "How much?"}, "How much?\nAnswer the question using a single word or phrase."),
        ("MathVista_MINI", {"question": "How much?"}, "How much?"),
        ("LLaVABench", {"question": "Tell."}, "Tell.\nAnswer this question in detail."),
    ],
)
def test_prompts_are_those_of_the_published_figures(model, dataset, line, expected):
    *pictures, text = model.build_prompt({**line, "pictures": 2}, dataset)
    assert text == {"type": "text", "value": expected}
    assert [part["value"] for part in pictures] == [f"{dataset}/0.jpg", f"{dataset}/1.jpg"]
