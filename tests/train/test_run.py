import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image

from segue import loading
from segue.checkpoints import adapters
from segue.checkpoints.random_weights import random_checkpoint
from segue.errors import CheckpointError, ConfigError, DataError, LimitError
from segue.media import open_media
from segue.train import checkpoints, loop, run_logger
from segue.train.recipe import DatasetSpec, Lora, ParameterGroup, Stage, Validation
from segue.train.run import estimate, train


def tensors(run):
    return checkpoints.read_all(adapters.find(run) / adapters.TENSORS)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_stopped_and_goes_on_ends_with_the_same_weights(make_recipe, watcher, tmp_path, optimizer):
    recipe = make_recipe(stage={"steps": 3, "optimizer": optimizer}, accumulation=2)
    train(recipe, watcher, device="cpu")
    again = replace(recipe, output=tmp_path / "again")
    stopped = train(again, watcher, device="cpu", limit=1)
    assert stopped.is_stopped and stopped.step == 1
    assert "stopped after 1 steps, all kept; --resume goes on from there" in watcher.said
    finished = train(again, watcher, device="cpu", resume=True)
    assert (finished.step, finished.is_stopped) == (3, False)
    assert equal(tensors(recipe.output), tensors(again.output))
    straight, resumed = (run_logger.lines(run / "log.jsonl") for run in (recipe.output, again.output))
    assert [line.get("loss") for line in straight] == [line.get("loss") for line in resumed]


def test_a_run_that_was_begun_with_the_words_of_older_versions_goes_on(make_recipe, watcher, caplog):
    recipe = make_recipe(stage={"steps": 2}, log_every=1)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=1, limit=1))
    train(recipe, watcher, device="cpu", limit=1)
    old = {"recipe.yaml": {"objective: joint": "objective: whole", "vision_alignment: ": "sight: "}}
    old["checkpoints/step-000001/checkpoint.json"] = {'"evaluated_at"': '"judged_at"'}
    old["log.jsonl"] = {'"kind": "evaluated"': '"kind": "judged"'}
    for name, words in old.items():
        text = (recipe.output / name).read_text()
        for new, word in words.items():
            assert new in text
            text = text.replace(new, word)
        (recipe.output / name).write_text(text)
    finished = train(recipe, watcher, device="cpu", resume=True)
    assert (finished.step, set(finished.metrics)) == (2, {"mean_iou", "ciou", "dice", "emitted"})
    told = [record.getMessage() for record in caplog.records if record.name == "segue.config"]
    assert told == [
        "stages[0].objective: whole is called joint now; change it where it is written",
        "stages[0].losses.sight is called vision_alignment now; change it where it is written",
    ]


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(make_recipe, watcher, monkeypatch):
    recipe = make_recipe(stage={"steps": 2})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop.StageLoop, "learn", lambda *_: _raise(KeyboardInterrupt()))
        train(recipe, watcher, device="cpu")
    assert train(recipe, watcher, device="cpu", resume=True).step == 2
    assert [line["kind"] for line in run_logger.lines(recipe.output / "log.jsonl")] == ["stage", "step", "step"]


@pytest.mark.slow  # starting a worker imports torch anew
def test_workers_change_nothing(make_recipe, watcher, tmp_path):
    recipe = make_recipe(stage={"steps": 1})
    train(recipe, watcher, device="cpu")
    with_worker = replace(recipe, output=tmp_path / "again", workers=1)
    train(with_worker, watcher, device="cpu")
    assert equal(tensors(recipe.output), tensors(with_worker.output))


def test_a_checkpoint_and_a_run_answer_like_any_model(make_recipe, watcher, pictures):
    recipe = make_recipe(stage={"steps": 1})
    out = train(recipe, watcher, device="cpu")
    image = open_media(pictures / "images" / "0.png")
    from_run, from_checkpoint = loading.load(recipe.output), loading.load(out.best)
    answers = [one.ask(image, "Please segment the square.") for one in (from_run, from_checkpoint)]
    assert answers[0].raw_text == answers[1].raw_text
    assert from_run.lineage["trained"]["step"] == 1
    assert from_run.lineage["model_hash"] != loading.load(recipe.model).lineage["model_hash"]


def test_the_best_checkpoint_is_kept_beside_the_newest(make_recipe, watcher):
    recipe = make_recipe(stage={"steps": 3}, keep=1, save_every=1)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=1))
    out = train(recipe, watcher, device="cpu")
    found = adapters.checkpoints(recipe.output)
    assert len(found) <= 2 and list(found)[-1].name == "step-000003"
    scores = [line["mean_iou"] for line in run_logger.lines(recipe.output / "log.jsonl") if line["kind"] == "evaluated"]
    assert len(scores) == 3
    assert found[out.best].score == max(scores)


def test_patience_ends_a_stage(make_recipe, watcher, monkeypatch):
    same = {"mean_iou": 0.5, "ciou": 0.5, "dice": 0.5, "emitted": 1.0}
    monkeypatch.setattr(loop.evaluation, "figures", lambda _: same)
    recipe = make_recipe(stage={"steps": 9})
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=1, patience=2, limit=1))
    assert train(recipe, watcher, device="cpu").step == 3
    assert "ends after 3 steps" in watcher.said[-1]


def test_stages_stand_on_one_another(make_recipe, watcher, tmp_path):
    recipe = make_recipe()
    groups = {"seg_projector": ParameterGroup(how="full")}
    first = Stage(name="align", steps=1, groups=groups, rate=1e-2)
    recipe = replace(recipe, stages=(first, replace(recipe.stages[0], steps=1)))
    out = train(recipe, watcher, device="cpu")
    record = adapters.read(out.best)
    assert (record.step, record.stage_step, record.base_folder) == (2, 1, "../../stages/align")
    moved = recipe.output.rename(tmp_path / "moved")
    loaded = loading.load(moved)
    aligned = checkpoints.read_all(moved / "stages" / "align" / adapters.TENSORS)
    assert not torch.equal(aligned["seg_projector.0.weight"], loaded.model.seg_projector[0].weight)
    assert loaded.lineage["trained"]["base_hash"] == adapters.read(moved / "stages" / "align").content_hash


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(make_recipe, watcher):
    watcher.step = lambda step, values: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None
    recipe = make_recipe(stage={"steps": 5})
    out = train(recipe, watcher, device="cpu")
    assert out.is_stopped and out.step == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("break_it", "error", "text"),
    [
        (lambda terms: {**terms, "loss": terms["loss"] * float("nan")}, DataError, "the loss became nan at step 2"),
        (lambda terms: _raise(torch.OutOfMemoryError("20 GiB wanted")), LimitError, "memory ran out at step 2"),
        (
            lambda terms: _raise(RuntimeError("DefaultCPUAllocator: not enough memory: 9")),
            LimitError,
            "memory ran out at step 2",
        ),
    ],
)
def test_what_breaks_a_step_is_one_error_and_leaves_the_last_checkpoint(
    make_recipe, watcher, monkeypatch, break_it, error, text
):
    recipe = make_recipe(stage={"steps": 3}, save_every=1)
    forward, calls = loop.StageLoop._terms, []

    def broken(self, fetched, step, micro):
        if step == 1:
            loss_module = self.state.loss_module
            monkeypatch.setattr(
                loss_module, "forward", lambda *given: break_it(type(loss_module).forward(loss_module, *given))
            )
        calls.append(step)
        return forward(self, fetched, step, micro)

    monkeypatch.setattr(loop.StageLoop, "_terms", broken)
    with pytest.raises(error, match=text):
        train(recipe, watcher, device="cpu")
    assert adapters.read(adapters.find(recipe.output)).step == 1
    loading.load(recipe.output)


def _raise(error):
    raise error


def test_a_full_disk_leaves_the_last_checkpoint(make_recipe, watcher, monkeypatch):
    recipe = make_recipe(stage={"steps": 3}, save_every=1)
    save = checkpoints.save_file

    def full(state, path):
        if (recipe.output / "checkpoints" / "step-000001").exists():
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(CheckpointError, match="step-000002: No space left on device; the checkpoints before it"):
        train(recipe, watcher, device="cpu")
    assert [path.name for path in (recipe.output / "checkpoints").iterdir()] == ["step-000001"]


def test_a_missing_image_ends_the_run_or_is_skipped_as_the_recipe_says(make_recipe, watcher, tmp_path, draw):
    folder = draw(tmp_path / "mine")
    annotations = [{"image": f"{n}.png", "text": ["the square"], "mask": [[[8, 8, 40, 8, 40, 40]]]} for n in range(4)]
    annotations[2]["image"] = "gone.png"
    (folder / "annotations.json").write_text(json.dumps(annotations))
    recipe = make_recipe(stage={"steps": 4}, data=(DatasetSpec(dataset="folder", root=folder, split="all"),))
    with pytest.raises(Exception, match=r"gone\.png"):
        train(recipe, watcher, device="cpu")
    skipping = replace(recipe, output=tmp_path / "skipping", on_bad_sample="skip", ceiling=0.3)
    assert train(skipping, watcher, device="cpu").step == 4
    assert len((skipping.output / "skipped.jsonl").read_text().splitlines()) == 1


def test_an_estimate_writes_no_run_folder_not_even_of_bad_rows(make_recipe, watcher, tmp_path, draw):
    folder = draw(tmp_path / "mine")
    for number in range(3):
        (folder / "images" / f"{number}.png").write_bytes(b"cut")
    source = replace(make_recipe().data[0], root=folder)
    recipe = make_recipe(data=(source,), on_bad_sample="skip", ceiling=0.9)
    measured = estimate(recipe, watcher, device="cpu")
    assert measured.seconds > 0 and measured.peak > 0
    assert watcher.said[-1].startswith("measured: ")
    assert not recipe.output.exists()


def test_a_run_that_goes_on_near_its_end_does_not_ask_whether_its_groups_learn(make_recipe, watcher, monkeypatch):
    monkeypatch.setattr(loop, "FIRST_STEPS", 1)
    monkeypatch.setattr(loop.optim, "rate_factor", lambda step, *_, **__: 1.0 if step == 0 else 1e-30)
    recipe = make_recipe(stage={"steps": 2})
    train(recipe, watcher, device="cpu", limit=1)
    assert train(recipe, watcher, device="cpu", resume=True).step == 2


def test_held_out_rows_that_point_at_nothing_are_told_before_the_first_step(make_recipe, watcher, tmp_path):
    source = DatasetSpec(dataset="image_chat", root=_chat(tmp_path, image="red.png"), split="train")
    recipe = make_recipe(validation=Validation(data=(source,)))
    with pytest.raises(ConfigError, match="none of the validation rows points at anything"):
        train(recipe, watcher, device="cpu")
    assert watcher.steps == []


def test_a_group_that_does_not_learn_is_named(make_recipe, watcher):
    groups = {"seg_projector": ParameterGroup(how="full"), "mask_decoder": ParameterGroup(how="full", rate=1e-60)}
    recipe = make_recipe(stage={"groups": groups, "weight_decay": 0.0})
    with pytest.raises(ConfigError, match="after 1 steps nothing in the groups mask_decoder has changed"):
        train(recipe, watcher, device="cpu")


def test_a_group_that_the_loss_does_not_reach_is_named(make_recipe, watcher):
    recipe = make_recipe(
        stage={"groups": {"vision": ParameterGroup(how="full"), "language": ParameterGroup(how="lora")}}
    )
    recipe = replace(recipe, data=(DatasetSpec(dataset="image_chat", root=_chat(recipe.output.parent), split="train"),))
    with pytest.raises(ConfigError, match="does not reach"):
        train(recipe, watcher, device="cpu")


def test_a_model_without_a_grounder_learns_words_and_refuses_masks(make_recipe, watcher, tmp_path):
    plain = random_checkpoint(tmp_path / "tiny", "tiny", grounder=False)
    recipe = make_recipe(model=str(plain), stage={"groups": {"language": ParameterGroup(how="lora")}})
    with pytest.raises(DataError, match="has masks, and the model has no grounder"):
        train(recipe, watcher, device="cpu")
    source = DatasetSpec(dataset="image_chat", root=_chat(tmp_path, image="red.png"), split="train")
    recipe = replace(recipe, data=(source,), output=tmp_path / "words")
    out = train(recipe, watcher, device="cpu")
    steps = [line for line in run_logger.lines(recipe.output / "log.jsonl") if line["kind"] == "step"]
    assert [line["loss"] == line["text"] and "mask" not in line for line in steps] == [True, True]
    assert loading.load(out.best).model.grounder is None


def _chat(root, **fields):
    (root / "llava_data" / "llava_images").mkdir(parents=True)
    Image.new("RGB", (60, 40), (200, 30, 30)).save(root / "llava_data" / "llava_images" / "red.png")
    (root / "llava_data" / "LLaVA-Instruct-150K").mkdir()
    (root / "llava_data" / "LLaVA-Instruct-150K" / "llava_v1_5_mix665k.json").write_text(
        json.dumps(
            [{"id": "a", **fields, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}]
        )
    )
    return root


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "was started with another seed"),
        ({"batch": 2}, "was started with another batch"),
    ],
)
def test_a_run_goes_on_only_with_its_own_recipe(make_recipe, watcher, change, text):
    recipe = make_recipe()
    train(recipe, watcher, device="cpu", limit=1)
    with pytest.raises(ConfigError, match=text):
        train(replace(recipe, **change), watcher, device="cpu", resume=True)
    stages = (replace(recipe.stages[0], betas=(0.5, 0.9)), *recipe.stages[1:])
    with pytest.raises(ConfigError, match=r"another stages\.0\.betas\.0 \(0\.\d+, now 0\.5\)"):
        train(replace(recipe, stages=stages), watcher, device="cpu", resume=True)


def test_a_finished_folder_is_not_written_over(make_recipe, watcher):
    recipe = make_recipe()
    train(recipe, watcher, device="cpu", limit=1)
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --resume"):
        train(recipe, watcher, device="cpu")


def test_bf16_learns_in_float32(make_recipe, watcher):
    recipe = make_recipe(stage={"steps": 1}, precision="bf16", gradient_checkpointing=True)
    train(recipe, watcher, device="cpu")
    assert {tensor.dtype for tensor in tensors(recipe.output).values()} == {torch.float32}


def test_all_that_can_learn_may_learn_in_full(make_recipe, watcher):
    names = ("vision", "connector", "language", "embeddings", "seg_projector", "mask_decoder", "image_encoder")
    recipe = make_recipe(
        stage={"steps": 1, "groups": {name: ParameterGroup(how="full") for name in names}, "lora": Lora()}
    )
    train(recipe, watcher, device="cpu")
    assert len(tensors(recipe.output)) > 200
