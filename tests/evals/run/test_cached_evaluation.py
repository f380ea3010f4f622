"""A set of questions about long videos, a LongVA and its siblings, and one cache.

Numbers in names are those of the conformance list in docs/cache.md.
"""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures_vqa import FIXTURES
from long_video import write_set
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import segue as segue_package
from segue import encoder, facts, prepare
from segue.cli.main import application
from segue.data.base import Rows
from segue.evals.benchmarks.vqa import WORDS
from segue.evals.run import report, runner
from segue.evals.run.evaluation import EvaluationSpec
from segue.evals.run.feature_cache import CachedBenchmark, build, list_media
from segue.evals.run.workers import run_workers
from segue.features import Store, Usage, entries
from segue.media import formats, open_media
from segue.models.prefill import LastPrompt
from segue.progress import UNWATCHED
from segue.synth.writing import Request, write
from segue.types import Message, Sample

SETTINGS = {"frames": "uniform:4", "max_new_tokens": 4}


@pytest.fixture(scope="module")
def longva(tmp_path_factory, longva_folder):
    """Writes the recorded LongVA in the official layout; the tensors whose name holds `changed` are larger by 1."""

    def make(changed=None):
        folder = tmp_path_factory.mktemp("longva")
        shutil.copytree(longva_folder, folder, dirs_exist_ok=True)
        tensors = load_file(longva_folder / "model.safetensors")
        moved = {name: tensor + 1 if changed and changed in name else tensor for name, tensor in tensors.items()}
        save_file(moved, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("questions"))


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files that were written a moment ago count as left alone."""
    monkeypatch.setattr(facts, "SETTLED", -10.0)


class Counted:
    """How often files were opened for their pixels, and how many tiles went through a tower."""

    def __init__(self, monkeypatch):
        self.opened = self.encoded = 0
        reader = formats.reader

        def counting(source):
            self.opened += 1
            return reader(source)

        monkeypatch.setattr(formats, "reader", counting)

    def load(self, spec):
        engine = spec.load()
        tower = engine.model.mllm.tower

        def counting(pixels, *rest):
            self.encoded += len(pixels)
            return tower(pixels, *rest)

        engine.model.mllm.tower = counting
        return engine


@pytest.fixture
def evaluate(questions, tmp_path, monkeypatch):
    """Evaluates a model; returns the answers, the usage of the cache, and what was counted."""

    def run(model, name, on="video_mme", data=questions, **cached):
        spec = EvaluationSpec(
            model=str(model),
            on=on,
            data=data,
            out=tmp_path / name,
            settings=SETTINGS,
            dtype="fp32",
            **cached,
        )
        evaluation, counted = spec.evaluation(), Counted(monkeypatch)
        usage = runner.run(evaluation, evaluation.open_data(), lambda: counted.load(spec), UNWATCHED, batch=spec.batch)
        lines = [json.loads(line) for path in spec.out.glob("rows*.jsonl") for line in path.read_text().splitlines()]
        answers = {line["id"]: line["answer"]["text"] for line in lines if line["status"] == "ok"}
        assert len(answers) == len(lines) > 1
        return answers, usage, counted

    return run


def test_38_39_41_the_second_run_encodes_nothing_and_opens_no_video(longva, evaluate, tmp_path):
    model, store = longva(), str(tmp_path / "cache")
    plain, usage, counted = evaluate(model, "plain")
    assert (usage, counted.encoded) == (Usage(), 12)
    first, usage, counted = evaluate(model, "first", cache=store)
    assert (first, usage.hits, usage.misses, counted.encoded) == (plain, 0, 3, 12)
    second, usage, counted = evaluate(model, "second", cache=store)
    assert (second, usage.hits, usage.misses) == (plain, 3, 0)
    assert (counted.opened, counted.encoded) == (0, 0)


@pytest.mark.parametrize("name", [one.name for one in WORDS if one.dataset == "video_questions"])
def test_38_39_every_long_video_set_is_answered_alike_and_decodes_nothing(
    longva, evaluate, tmp_path, monkeypatch, name
):
    model, data, store = longva(), FIXTURES[name](tmp_path / "data"), str(tmp_path / "cache")
    first, usage, counted = evaluate(model, "first", name, data, cache=store)
    assert usage.hits + usage.misses and counted.encoded
    monkeypatch.setattr(prepare, "read_frames", lambda *_: pytest.fail("something was decoded"))
    second, again, counted = evaluate(model, "second", name, data, cache=store)
    # these clips are folders, whose first picture is looked at for its size
    assert (second, again.misses, again.hits, counted.encoded) == (first, 0, usage.hits + usage.misses, 0)


def test_13_without_a_cache_a_video_that_is_too_long_is_refused_before_it_is_decoded(
    longva, questions, tmp_path, monkeypatch
):
    spec = EvaluationSpec(model=str(longva()), on="video_mme", data=questions, out=tmp_path / "out", settings=SETTINGS)
    monkeypatch.setattr(encoder, "most_tokens", lambda _: 15)  # four frames have 16
    read = prepare.read_frames

    def read_black(media, plan):
        assert media.count == 1, "something was decoded"
        return read(media, plan)

    for room in (prepare, runner):
        monkeypatch.setattr(room, "read_frames", read_black)
    evaluation = spec.evaluation()
    runner.run(evaluation, evaluation.open_data(), spec.load, UNWATCHED)
    lines = [json.loads(line) for line in (spec.out / "rows.jsonl").read_text().splitlines()]
    assert lines and all("16 tokens and the model 15 positions" in line["error"] for line in lines)


def test_26_siblings_share_entries_only_if_their_towers_are_equal(longva, evaluate, tmp_path):
    store = str(tmp_path / "cache")
    evaluate(longva(), "first", cache=store)
    for changed, hits in (("model.layers.0.mlp.up_proj", 3), ("mm_projector.0.bias", 3), ("layers.0.layer_norm1", 0)):
        other = longva(changed)
        expected, _, _ = evaluate(other, f"plain {changed}")
        answers, usage, _ = evaluate(other, changed, cache=store)
        assert (answers, usage.hits) == (expected, hits)


def test_45_questions_go_on_from_the_video_that_was_read(longva, evaluate, monkeypatch):
    model, reused = longva(), []
    shared = LastPrompt.shared
    monkeypatch.setattr(LastPrompt, "shared", lambda *given: reused.append(shared(*given)) or reused[-1])
    alone, _, _ = evaluate(model, "alone", batch=1)
    assert not any(reused)
    assert evaluate(model, "together")[0] == alone
    assert sum(count > 0 for count in reused) == 12, "all but the first about each of three videos"


def test_the_report_tells_what_the_cache_was_used_for(longva, questions, tmp_path):
    words = ["evaluate", longva(), "--on", "video_mme", "--data", questions, "-o", tmp_path / "out"]
    words += ["--cache", tmp_path / "cache", "--frames", "uniform:4", "--max-new-tokens", 4, "--dtype", "fp32"]
    result = CliRunner().invoke(application(), list(map(str, words)), catch_exceptions=False)
    assert "features: 0 hits, 3 misses (0.0 %)" in result.stderr
    told = json.loads((tmp_path / "out" / "video_mme" / report.TIMINGS).read_text())
    assert told["features"]["absent"] == 3


@pytest.mark.slow
def test_workers_share_the_cache(longva, questions, tmp_path):
    for name, hits in (("first", 0), ("second", 3)):
        spec = EvaluationSpec(
            model=str(longva()),
            on="video_mme",
            data=questions,
            out=tmp_path / name,
            settings=SETTINGS,
            cache=str(tmp_path / "cache"),
        )
        assert run_workers(spec, spec.evaluation().open_data, 2, UNWATCHED).hits == hits


@pytest.fixture
def segue():
    """Runs `segue cache ...`; returns the exit code and what it says as JSON."""

    def run(*words):
        result = CliRunner().invoke(application(), ["cache", *map(str, words), "--json"], catch_exceptions=False)
        return result.exit_code, json.loads(result.stdout)

    return run


def built(segue, model, questions, store, *more):
    shown = ("--frames", "uniform:4", "--dtype", "fp32")
    words = ("build", "video_mme", "--model", model, "--data", questions, "--cache", store, *shown, *more)
    code, (told,) = segue(*words)
    return code, told


def test_34_35_a_build_weighs_what_was_projected_and_goes_on_without_opening_anything(
    longva, questions, evaluate, segue, tmp_path, monkeypatch
):
    model, store = longva(), tmp_path / "cache"
    code, told = built(segue, model, questions, store, "--dry-run")
    assert (code, told["media"], told["there"]) == (0, 3, 0)
    assert not store.exists()
    assert built(segue, model, questions, store, "--limit", 5)[1]["encoded"] == 1
    code, made = built(segue, model, questions, store)
    assert (code, made["there"], made["encoded"], made["failed"], made["left"]) == (0, 1, 2, 0, 0)
    found = list(Store(store, reserve=0).entries())
    assert sum(one.nbytes for one in found) == told["bytes"]
    monkeypatch.setattr(entries, "read", None)
    monkeypatch.setattr(entries, "read_head", None)
    counted = Counted(monkeypatch)
    assert built(segue, model, questions, store)[1]["encoded"] == 0
    assert counted.opened == 0
    monkeypatch.undo()
    assert evaluate(model, "run", cache=str(store))[1].misses == 0


def test_35_five_thousand_media_that_are_kept_are_gone_over_without_reading_one(longva, tmp_path, monkeypatch):
    engine = segue_package.load(longva(), dtype="fp32")
    cache = engine.use_cache(Store(tmp_path / "cache", reserve=0))
    media = [open_media(np.array([[[row % 256, row // 256, 0]]], np.uint8)) for row in range(5_000)]
    said = Message("assistant", ("A.",))
    made = Rows("made", media, lambda one, _: Sample("", "chat", (Message.user("?", one), said), frames=(0,)))
    evaluation = EvaluationSpec(model="", on="video_mme", data=tmp_path, out=tmp_path).evaluation()
    this = CachedBenchmark(evaluation, made, engine, cache)
    for one in media:
        path = cache.store.path(cache.place(cache.identity.key(*engine.encoder.key(one, **this.shown))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    reads = []
    for name in ("read", "read_head"):
        monkeypatch.setattr(entries, name, lambda *_, **__: reads.append(1))
    listed = list_media(this)
    assert (len(listed.there), listed.absent, listed.failures) == (5_000, [], [])
    assert build(this, listed.absent, UNWATCHED) == []
    assert not reads


def test_folders_of_ones_own_are_told_apart(longva, segue, tmp_path):
    asked = ("--model", longva(), "--dtype", "fp32")
    for number, (name, split) in enumerate((("cats", "test"), ("dogs", "val"))):
        write(tmp_path / name / split, Request(format="finetune", count=1, split="test", start=number, size=(64, 64)))
        words = ("build", tmp_path / name, "--cache", tmp_path / "cache", *asked)
        assert segue(*words, *([] if split == "test" else ["--split", split]))[0] == 0
    refs = Store(tmp_path / "cache", reserve=0).refs()
    assert [(ref["dataset"], len(ref["entries"])) for ref in refs] == [("cats_test", 1), ("dogs_val", 1)]
    code, told = segue("verify", tmp_path / "cache", "--on", tmp_path / "dogs", "--split", "val", *asked)
    assert (code, told["features"]["media"]) == (0, 1)


def test_33_34_shards_together_are_the_whole_and_a_full_cache_stops_the_build(longva, questions, segue, tmp_path):
    model = longva()
    for shard in ("0/2", "1/2"):
        assert built(segue, model, questions, tmp_path / "cache", "--shard", shard)[0] == 0
    (row,) = segue("stats", tmp_path / "cache")[1]["datasets"]
    assert (row["dataset"], row["media"], row["there"]) == ("video_mme", 3, 3)
    code, told = built(segue, model, questions, tmp_path / "small", "--budget", row["bytes"] // 3 + 1)
    assert (code, told["encoded"], told["left"]) == (2, 1, 2)
    code, told = built(segue, model, questions, tmp_path / "small", "--reserve", "1000TB")
    assert (code, told["encoded"], told["left"]) == (2, 0, 2)
    other = longva("layers.0.layer_norm1")
    code, told = built(segue, other, questions, tmp_path / "cache", "--budget", row["bytes"], "--evict")
    assert (code, told["encoded"], told["left"]) == (0, 3, 0)
    assert len(list(Store(tmp_path / "cache", reserve=0).entries())) == 3


def test_43_verify_compares_features_and_answers_with_fresh_ones(longva, questions, segue, tmp_path):
    model, store = longva(), tmp_path / "cache"
    built(segue, model, questions, store)
    words = ("verify", store, "--model", model, "--on", "video_mme", "--data", questions)
    words += ("--frames", "uniform:4", "--dtype", "fp32", "--samples", 3)
    code, told = segue(*words, "--answers", "--max-new-tokens", 4)
    assert (code, told["sound"], told["features"]["error"], told["answers"]["equal"]) == (0, 3, 0.0, 3)
    assert (told["answers"]["same_logits"], told["answers"]["divergence"]) == (3, 0.0)
    assert told["answers"]["interval"] == pytest.approx([0.4385, 1.0], abs=1e-4)
    cache = segue_package.load(model, dtype="fp32").use_cache(Store(store, reserve=0))
    place = next(cache.store.entries()).place
    content = cache.store.get(place)
    cache.store.remove(next(cache.store.entries()))
    cache.store.put(place, content.facts, {name: tensor.flip(0) for name, tensor in content.tensors.items()})
    code, told = segue(*words)
    assert (code, told["wrong"], len(told["features"]["wrong"])) == (2, [], 1)


def test_29_signatures_name_the_tensors_that_differ(longva, segue):
    first, other, projector = longva(), longva("layers.0.layer_norm1.weight"), longva("mm_projector.0.bias")
    code, rows = segue("signature", first, other, projector)
    assert (code, rows[0]["tower_differs"]) == (0, [])
    assert rows[1]["tower_differs"] == ["encoder.layers.0.layer_norm1.weight"]
    assert (rows[2]["tower_differs"], rows[2]["projected_differs"]) == ([], ["projector.0.bias"])


def test_equal_weights_that_cut_images_otherwise_share_nothing(longva, segue):
    first, other = longva(), longva()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"image_grid_pinpoints": config["image_grid_pinpoints"][:1]})
    )
    code, rows = segue("signature", first, other)
    assert (code, rows[1]["tower"], rows[1]["tower_differs"]) == (0, rows[0]["tower"], [])
    assert [one.split(":")[0] for one in rows[1]["tower_settings"]] == ["encoder.resolutions"]


def test_42_inspect_says_why_a_model_does_not_find_a_medium(longva, questions, tmp_path):
    model, store = longva(), tmp_path / "cache"
    spec = EvaluationSpec(
        model=str(model), on="video_mme", data=questions, out=tmp_path, settings=SETTINGS, cache=str(store)
    )
    engine, clip = spec.load(), questions / "long_video" / "Video-MME" / "video" / "v0.mp4"
    engine.ask(clip, "What?", options=segue_package.Options(**SETTINGS))
    words = ["cache", "inspect", store, clip, "--model", longva("mm_projector.0.bias")]
    for frames, told in (("uniform:4", "is there"), ("uniform:3", "sampling: uniform:4 is not uniform:3")):
        result = CliRunner().invoke(application(), [*map(str, words), "--frames", frames], catch_exceptions=False)
        assert told in result.stdout


def test_the_words_of_the_older_guide_are_translated(longva, questions, tmp_path, monkeypatch):
    model, examples = longva(), Path(__file__).parents[3] / "examples"
    monkeypatch.syspath_prepend(str(examples))
    shared = ["--quantize", "int8", "--nframe", "4", "--cache-dir", str(tmp_path / "cache"), "--data", str(questions)]
    for script, words in (
        ("preprocess_features.py", ["--datasets", "Video-MME_128frame", "--model-path", str(model)]),
        ("verify_features.py", ["--dataset", "Video-MME_128frame", "--model", str(model), "--samples", "1"]),
    ):
        monkeypatch.setattr(sys, "argv", [script, *words, *shared])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(examples / script), run_name="__main__")
        assert not ended.value.code
    assert len(list(Store(tmp_path / "cache", reserve=0).entries())) == 3
