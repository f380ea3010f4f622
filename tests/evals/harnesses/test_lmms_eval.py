"""The model for lmms-eval: against a stand-in of what it derives from, and in lmms-eval itself where that is there."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import lmms_task
import pytest
from PIL import Image

from segue.errors import ConfigError, SegueError
from segue.evals.harnesses import harness_adapter
from segue.options import Options

ROOT = Path(__file__).parents[3]


@dataclass
class Request:
    """As lmms-eval hands one over."""

    args: tuple


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str


class Base:
    """What the adapter takes from lmms-eval's base class."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.kept = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *what: self.kept.append(what))


@pytest.fixture
def adapter(monkeypatch):
    """The module, imported over stand-ins; its models are told by the list `loaded`."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.api.instance")
    for name in (*names, "lmms_eval.models", "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Base
    sys.modules["lmms_eval.api.instance"].Instance = Request
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest
    monkeypatch.delitem(sys.modules, "segue.evals.harnesses.lmms_eval", raising=False)
    module = importlib.import_module("segue.evals.harnesses.lmms_eval")
    module.loaded = []

    def load(model, **how):
        module.loaded.append((model, how))

        def answer_all(dialogues, options, *, rows):
            said = (f"{one[0].text.strip()}! {options.max_tiles}" for one in dialogues)
            return [SimpleNamespace(text=text, raw_text=text) for text in said]

        return SimpleNamespace(answer_all=answer_all, lineage={})

    monkeypatch.setattr(harness_adapter, "load", load)
    monkeypatch.setattr(module, "PartialState", lambda: SimpleNamespace(process_index=0, num_processes=1, device="cpu"))
    yield module
    sys.modules.pop("segue.evals.harnesses.lmms_eval", None)


@pytest.fixture
def ask(adapter):
    """Asks a model about documents whose field `shown` is what the task shows."""

    def run(documents, given=None, **model_args):
        model = adapter.Segue(**model_args)
        model.task_dict["task"] = {"test": documents}
        requests = [
            Request((document["text"], given or {}, lambda document: document["shown"], number, "task", "test"))
            for number, document in enumerate(documents)
        ]
        return model, model.generate_until(requests)

    return run


def test_the_package_tells_lmms_eval_of_the_model(adapter):
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    assert entry == {"segue": "segue.evals.harnesses.lmms_eval:manifest"}
    assert adapter.manifest() == Manifest("segue", "segue.evals.harnesses.lmms_eval.Segue")
    assert issubclass(adapter.Segue, Base) and adapter.Segue.is_simple


def test_documents_are_asked_about_what_their_task_shows(ask, adapter):
    picture = Image.new("RGB", (8, 8))
    documents = [{"text": "a", "shown": [picture]}, {"text": "b", "shown": None}, {"text": "c", "shown": [[picture]]}]
    model, said = ask(documents, pretrained="m", device="cpu", dtype="fp32", max_tiles=3)
    assert said == ["a! 3", "b! 3", "c! 3"]
    assert adapter.loaded == [("m", {"device": "cpu", "dtype": "fp32"})]
    assert [text for _, _, text in model.kept] == said and model.kept[0][:2] == ("generate_until", ("a", {}))


def test_a_tasks_stops_end_an_answer(ask):
    assert ask([{"text": "a", "shown": []}], {"until": ["!"]})[1] == ["a"]


@pytest.mark.parametrize("name", ["loglikelihood", "generate_until_multi_round"])
def test_what_is_not_generation_in_one_go_is_refused(adapter, name):
    with pytest.raises(ConfigError, match="output_type is generate_until"):
        getattr(adapter.Segue(), name)([Request(())])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"tempo": 1}, "unknown model_args tempo; expected pretrained, device, dtype, cache_dir, enable_cache, frames"),
        ({"batch_size": "auto"}, "batch_size is 'auto'; expected a number"),
        ({"batch_size": 0}, "batch_size is 0; expected a number"),
        ({"max_tiles": 99}, "out of range"),
    ],
)
def test_wrong_arguments_are_refused(adapter, given, match):
    with pytest.raises(SegueError, match=match):
        adapter.Segue(**given)


def test_each_of_several_processes_takes_its_own_device(adapter, monkeypatch):
    state = SimpleNamespace(process_index=1, num_processes=2, device="meta")
    monkeypatch.setattr(adapter, "PartialState", lambda: state)
    model = adapter.Segue(device="cuda")
    assert (model._rank, model._world_size) == (1, 2)
    assert adapter.loaded == [("demo", {"device": "meta", "dtype": "auto"})]


@pytest.mark.slow  # starts lmms-eval, which imports half of what is installed
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed; docs/adapters.md says how")
def test_lmms_eval_scores_the_demo_model_as_segue_answers(tmp_path):
    lmms_task.write(tmp_path, stills=2)
    words = "--model segue --model_args pretrained=demo,dtype=fp32,device=cpu --batch_size 4"
    task = f"--tasks segue_scenes --include_path {tmp_path} --log_samples --output_path {tmp_path / 'out'}"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT / "src")}
    line = [sys.executable, "-m", "lmms_eval", *words.split(), *task.split()]
    run = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **offline}, check=False)
    assert run.returncode == 0, run.stderr[-2000:]

    model = harness_adapter.HarnessAdapter.load("demo", device="cpu", dtype="fp32")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    shown = [tuple(row["images"]) or (row["video"],) for row in rows]
    short = Options(max_new_tokens=16, keep_masks=False)
    expected = [
        model.answer(harness_adapter.HarnessRequest(row["question"], seen, short))
        for row, seen in zip(rows, shown, strict=True)
    ]
    samples = next((tmp_path / "out").rglob("*samples*.jsonl"))
    told = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"] for sample in told] == expected
    right = [text.lower() == row["answer"].lower() for text, row in zip(expected, rows, strict=True)]
    results = json.loads(next((tmp_path / "out").rglob("*results.json")).read_text())
    assert results["results"]["segue_scenes"]["exact_match,none"] == pytest.approx(sum(right) / len(right))
