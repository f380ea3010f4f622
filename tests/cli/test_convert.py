import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from segue import loading
from segue.checkpoints import adapters
from segue.cli.main import application
from segue.train.recipe import DatasetSpec, Lora, ParameterGroup, Stage, TrainRecipe
from segue.train.run import train
from segue.weights import file_hash, read_json


@pytest.fixture
def run_segue():
    """Runs `segue ...` in this process, with the real engine to find the model."""
    return lambda *arguments: CliRunner().invoke(application(), list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def checkpoint(official_folder, tmp_path):
    """A training file with a mask decoder alone."""
    tensors = load_file(official_folder / "model.safetensors")
    state = {name: tensor + 1 for name, tensor in tensors.items() if ".sam_mask_decoder." in name}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "iter_5.pth")
    return tmp_path / "iter_5.pth"


def test_an_official_folder_comes_in_and_goes_out(run_segue, official_folder, tmp_path):
    run = run_segue("convert", "import", official_folder, tmp_path / "ours")
    assert run.exit_code == 0 and run.stderr.startswith(f"importing {official_folder} as {tmp_path / 'ours'}\n")
    assert [line.partition(",")[0] for line in run.stderr.splitlines()[1:4]] == [
        *("reading what it is made from", "writing", "reading back")
    ]
    run = run_segue("convert", "export", tmp_path / "ours", tmp_path / "official", "--dtype", "fp16", "--json")
    found = json.loads(run.stdout)
    assert found["folder"] == str(tmp_path / "official") and found["made_from"]["dtype"] == "fp16"
    assert read_json(tmp_path / "official" / "config.json")["torch_dtype"] == "float16"


def test_people_get_the_account_of_a_training_file_on_one_screen(run_segue, official_folder, checkpoint, tmp_path):
    run = run_segue("convert", "import", checkpoint, tmp_path / "out", "--base", official_folder)
    assert run.exit_code == 0
    lines = run.stdout.splitlines()
    assert len(lines) < 25 and max(map(len, lines)) <= 80
    assert next(line for line in lines if "mask_decoder" in line).split() == [
        *("mask_decoder", "131", "0", "0", "0", "43,181", "100.0%")
    ]
    assert "note: language: nothing of it in the file" in run.stderr and "is written" in run.stderr


def test_machines_get_the_account_as_one_object(run_segue, official_folder, checkpoint, tmp_path):
    run = run_segue("convert", "import", checkpoint, tmp_path / "out", "--base", official_folder, "--json")
    found = json.loads(run.stdout)
    assert {row["component"]: row["loaded"] for row in found["coverage"]}["mask_decoder"] == 131
    assert run.stderr == "" and len(found["notes"]) == 5


def test_components_are_transferred_by_name(run_segue, official_folder, tmp_path):
    arguments = ("convert", "init", official_folder, tmp_path / "out", "--from", official_folder)
    run = run_segue(*arguments, "--components", "mask_decoder, vision")
    assert run.exit_code == 0 and "into tiny" in run.stdout and "kept as they were: connector, language" in run.stderr
    whole = json.loads(run_segue(*arguments, "--overwrite", "--json").stdout)
    assert whole["report"]["fraction"] == 1.0 and whole["report"]["kept"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "{pth}", "{out}"), "name the model that this training began from: --base MODEL"),
        (
            ("import", "{official}", "{out}", "--base", "{official}", "--alpha", "2"),
            "--base, --alpha is for a .pth of training",
        ),
        (("import", "{official}", "{official}"), "is read; choose another folder"),
        (("import", "{missing}", "{out}"), "there is no folder"),
        (("init", "{official}", "{out}", "--from", "{official}", "--min-coverage", "0.5"), "add --components"),
        (("init", "{official}", "{out}", "--from", "{official}", "--components", "llm"), "unknown component llm"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run_segue, official_folder, checkpoint, tmp_path, arguments, words):
    places = {"pth": checkpoint, "out": tmp_path / "out", "official": official_folder, "missing": tmp_path / "none"}
    run = run_segue("convert", *(argument.format(**places) for argument in arguments))
    assert run.exit_code == 2 and run.stderr.count("error: ") == 1 and words in run.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_json_too_where_json_was_asked_for(run_segue, checkpoint, tmp_path):
    run = run_segue("convert", "import", checkpoint, tmp_path / "out", "--json")
    assert json.loads(run.stdout)["kind"] == "ConfigError"


def test_help_lists_the_sub_commands(run_segue):
    text = run_segue("convert", "--help").stdout
    assert all(f" {name} " in text for name in ("import", "merge", "export", "init"))


class Unwatched:
    """Looks away from a run."""

    def say(self, text):
        pass

    def start(self, stage, steps, done):
        pass

    def step(self, step, values):
        pass


@pytest.fixture(scope="module")
def trained_run(official_folder, tmp_path_factory):
    """A run of two steps over one picture, each with a checkpoint; LoRA, rows and whole groups all learned."""
    root = tmp_path_factory.mktemp("run")
    image, mask = np.full((60, 80, 3), 30, np.uint8), np.zeros((60, 80), np.uint8)
    image[10:40, 20:50], mask[10:40, 20:50] = 220, 255
    for name, pixels in (("images", image), ("masks", mask)):
        (root / "mine" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(root / "mine" / name / "1.png")
    how = {"language": "lora", "embeddings": "rows", "seg_projector": "full", "mask_decoder": "full"}
    groups = {name: ParameterGroup(how=word) for name, word in how.items()}
    recipe = TrainRecipe(
        model=str(official_folder),
        output=root / "run",
        data=(DatasetSpec(dataset="folder", root=root / "mine", split="all", options={"phrase": "the square"}),),
        stages=(Stage(name="all", steps=2, rate=1e-2, groups=groups, lora=Lora(rank=4, alpha=8.0)),),
        **{"batch": 1, "precision": "fp32", "workers": 0, "max_tiles": 1, "save_every": 1},
    )
    train(recipe, Unwatched(), device="cpu")
    return recipe.output


def said(folder, picture):
    answer = loading.load(folder, device="cpu", dtype="fp32").ask(picture(), "Where is it?")
    return answer.raw_text, [region.masks.rles for region in answer.regions]


def test_a_run_is_merged_by_its_best_checkpoint_which_is_named(run_segue, trained_run, tmp_path, picture):
    run = run_segue("convert", "merge", trained_run, tmp_path / "out", "--dtype", "fp32")
    assert run.exit_code == 0
    assert f"from {trained_run / 'checkpoints' / 'step-000002'}: 14 layers with LoRA" in run.stderr
    answer = said(tmp_path / "out", picture)
    assert answer == said(trained_run, picture) and answer[1]


def test_a_checkpoint_is_merged_with_the_account_as_one_object(run_segue, trained_run, tmp_path):
    checkpoint = trained_run / "checkpoints" / "step-000001"
    run = run_segue("convert", "merge", checkpoint, tmp_path / "out", "--json")
    found = json.loads(run.stdout)
    assert (found["checkpoint"], found["folded"]) == (str(checkpoint), 14)
    lineage = read_json(tmp_path / "out" / "lineage.json")
    assert lineage["model_hash"] == found["model_hash"]
    assert lineage["made_from"]["trained"]["step"] == 1 and lineage["made_from"]["dtype"] == "bf16"
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert {dtype for name, dtype in dtypes.items() if "mask_decoder" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "language_model" in name} == {torch.bfloat16}


def test_what_was_trained_goes_to_the_official_layout_and_back(run_segue, trained_run, tmp_path, picture):
    for step, source, out in (
        ("merge", trained_run, "one"),
        ("export", "one", "official"),
        ("import", "official", "two"),
    ):
        source = source if step == "merge" else tmp_path / source
        assert run_segue("convert", step, source, tmp_path / out, "--dtype", "fp32").exit_code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert said(tmp_path / "official", picture) == said(trained_run, picture)


def test_a_merged_folder_is_replaced_only_where_that_is_said(run_segue, trained_run, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    arguments = ("convert", "merge", trained_run, tmp_path / "out")
    assert run_segue(*arguments).exit_code == 0
    before = (tmp_path / "out" / "lineage.json").read_text()
    again = run_segue(*arguments, "--dtype", "fp32")
    assert again.exit_code == 2 and "exists already" in again.stderr and "--overwrite" in again.stderr
    assert (tmp_path / "out" / "lineage.json").read_text() == before
    assert run_segue(*arguments, "--dtype", "fp32", "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "lineage.json").read_text() != before
    other = run_segue("convert", "merge", trained_run, tmp_path / "notes", "--overwrite")
    assert other.exit_code == 2 and "is no model folder" in other.stderr


def test_a_merge_that_would_lose_what_was_learned_is_one_line(run_segue, trained_run, tmp_path):
    checkpoint = tmp_path / "faint"
    shutil.copytree(trained_run / "checkpoints" / "step-000002", checkpoint)
    stored = load_file(checkpoint / adapters.TENSORS)
    faint = {name: tensor * 1e-9 if name.endswith(".lora_B") else tensor for name, tensor in stored.items()}
    save_file(faint, checkpoint / adapters.TENSORS)
    record = adapters.read(checkpoint)
    replace(record, tensors_hash=file_hash(checkpoint / adapters.TENSORS)).write(checkpoint)
    run = run_segue("convert", "merge", checkpoint, tmp_path / "out")
    assert run.exit_code == 2 and run.stderr.count("error: ") == 1
    assert run.stderr.splitlines()[-1].startswith(f"error: merging {checkpoint} would lose what 14 layers learned")
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_is_not_merged_and_a_checkpoint_is_merged_before_it_is_exported(
    run_segue, official_folder, trained_run, tmp_path
):
    run = run_segue("convert", "merge", official_folder, tmp_path / "out")
    assert run.exit_code == 2 and "is no training checkpoint and no run" in run.stderr
    run = run_segue("convert", "export", trained_run, tmp_path / "out")
    assert run.exit_code == 2 and f"segue convert merge {trained_run} OUT" in run.stderr
