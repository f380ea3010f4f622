"""Did anything become slower: `segue bench` of another commit and of this tree, in turns.

    python benchmarks/before_after.py COMMIT [--rounds 3] [-- --architecture Sa2VA-1B --frames 5 --repeats 1]
    python benchmarks/before_after.py COMMIT --recipe recipes/demo.yaml

The commit is checked out beside, and both are run as a user runs them, with the libraries of this environment; what
stands behind `--` goes to `segue bench`. With `--recipe` each trains by its own recipe of that name instead: of every
stage a few steps of four samples, which it draws itself. Told is for every row that both know before / now, of two runs
that follow one another: the median of all rounds and their range, for a machine may be twice as fast for a minute.
Above 1 is quicker now. Rows that only one of them knows are named.

The exit code is 1 if a row takes a fifth longer now, by the median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import yaml

HERE = Path(__file__).resolve().parents[1]
SLOWER = 1.2
STEPS = 4  # of a stage


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", type=Path, help="compare the steps of a recipe's stages")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    settings = parser.parse_args(words[:end])
    print(f"$ python benchmarks/before_after.py {' '.join(words)}")
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}")
    measure = partial(trained, settings.recipe) if settings.recipe else partial(benched, words[end + 1 :])
    rounds: list[dict[str, dict[str, float]]] = []
    with TemporaryDirectory() as scratch:
        tree = Path(scratch) / "before"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "--quiet", "--detach", tree, settings.commit], check=True)
        try:
            for number in range(settings.rounds):
                print(f"round {number + 1} of {settings.rounds} ...", file=sys.stderr)
                places = {"before": tree, "now": HERE}
                rounds.append({when: measure(root) for when, root in places.items()})
                ratios = {name: f"{of_row[-1]:.2f}" for name, of_row in by_row(rounds).items()}
                print(f"round {number + 1}: {ratios}", file=sys.stderr)  # a round in real size takes half an hour
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", tree], check=True)
    print(f"\n{'seconds, before / now' if settings.recipe else 'CPU seconds, before / now':38}median      range")
    medians = [told(name, ratios) for name, ratios in by_row(rounds).items()]
    before, now = rounds[0]["before"], rounds[0]["now"]
    for when, mine, other in (("before", before, now), ("now", now, before)):
        if alone := [name for name in mine if name not in other]:
            print(f"{when} alone: {'; '.join(alone)}")
    sys.exit(min(medians, default=1.0) * SLOWER < 1)


def by_row(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, list[float]]:
    """Before / now of each round for every row that both know."""
    names = [name for name in rounds[0]["now"] if name in rounds[0]["before"]]
    return {name: [one["before"][name] / one["now"][name] for one in rounds] for name in names}


def told(name: str, ratios: Sequence[float]) -> float:
    """A line of the table; the median."""
    print(f"{name:38}{median(ratios):.2f} x  {min(ratios):.2f} to {max(ratios):.2f}")
    return median(ratios)


def benched(options: Sequence[str], root: Path) -> dict[str, float]:
    """The quickest CPU seconds of each row of a tree's `segue bench`."""
    rows = json.loads(run(root, "bench", "--json", "--device", "cpu", *options))["stages"]
    return {
        row["name"] + (f", objects: {row['objects']}" if row["objects"] is not None else ""): min(row["seconds"])
        for row in rows
    }


def trained(recipe: Path, root: Path) -> dict[str, float]:
    """The quickest seconds of a step of each stage of a tree's recipe."""
    count = len(yaml.safe_load((root / recipe).read_text(encoding="utf-8"))["stages"])
    few = {"batch": 4, "workers": 0, "log_every": 1, "validation": "null"}
    few |= {f"stages.{number}.steps": STEPS for number in range(count)}
    with TemporaryDirectory() as scratch:
        sets = [f"--set={name}={value}" for name, value in {**few, "output": Path(scratch) / "run"}.items()]
        run(root, "train", str(recipe), "--device", "cpu", *sets)
        lines = map(json.loads, (Path(scratch) / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines())
        seconds = [line["seconds"] for line in lines if line["kind"] == "step"]
    return {f"stage {at + 1}": min(seconds[STEPS * at : STEPS * (at + 1)]) for at in range(count)}


def run(root: Path, *words: str) -> str:
    """What a command of a tree prints."""
    command = [sys.executable, "-m", "segue.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"segue {words[0]} in {root} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


if __name__ == "__main__":
    main()
