"""Two processes on one machine, as torchrun and accelerate launch start them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from segue import config
from segue.grounding import trained
from segue.train import checkpoints, journal
from segue.train.run import train

SOURCE = Path(__file__).parents[2] / "src"
PROGRAM = "from segue.cli.main import main\nif __name__ == '__main__':\n    main()\n"


def launch(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(config.dump(recipe))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["program.py", "train", "recipe.yaml", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow  # half of its twenty seconds is three processes importing torch
def test_two_processes_learn_what_one_learns_from_the_same_samples(make_recipe, watcher, tmp_path):
    recipe = make_recipe()
    recipe = replace(recipe, stages=(replace(recipe.stages[0], lora=replace(recipe.stages[0].lora, dropout=0.0)),))
    pair = replace(recipe, output=tmp_path / "pair")
    launch(pair, tmp_path)
    alone = replace(recipe, accumulation=2)
    train(alone, watcher, device="cpu")
    one, two = (
        [line for line in journal.lines(run / "log.jsonl") if line["kind"] == "step"]
        for run in (alone.output, pair.output)
    )
    # the points at which masks are judged are drawn per process, the words are not
    assert one[0]["text"] == pytest.approx(two[0]["text"], rel=1e-5)
    assert one[1]["text"] == pytest.approx(two[1]["text"], rel=1e-2)
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    names = [checkpoints.read_all(trained.find(run) / trained.TENSORS).keys() for run in (alone.output, pair.output)]
    assert names[0] == names[1]
