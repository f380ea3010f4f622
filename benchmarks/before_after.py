"""Did anything become slower: `segue bench` of another commit and of this tree, in turns.

    python benchmarks/before_after.py COMMIT [--rounds 3] [-- --architecture Sa2VA-1B --frames 5 --repeats 1]

The commit is checked out beside, and both are run as a user runs them, with the libraries of this environment; what
stands behind `--` goes to `segue bench`. Told is for every row that both know before / now, of two runs that follow one
another: the median of all rounds and their range, for a machine may be twice as fast for a minute. Above 1 is quicker
now. Rows that only one of them knows are named.

The exit code is 1 if a row takes a fifth longer now, by the median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parents[1]
SLOWER = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("bench", nargs="*", help="options of `segue bench`")
    settings = parser.parse_args()
    print(f"$ python benchmarks/before_after.py {' '.join(sys.argv[1:])}")
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {names}")
    rounds: list[dict[str, dict[str, float]]] = []
    with TemporaryDirectory() as scratch:
        tree = Path(scratch) / "before"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "--quiet", "--detach", tree, settings.commit], check=True)
        try:
            for number in range(settings.rounds):
                print(f"round {number + 1} of {settings.rounds}", file=sys.stderr)
                places = {"before": tree, "now": HERE}
                rounds.append({when: measured(root, settings.bench) for when, root in places.items()})
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", tree], check=True)
    before, now = rounds[0]["before"], rounds[0]["now"]
    slowest = 1.0
    print(f"\n{'CPU seconds, before / now':38}median      range")
    for name in (name for name in now if name in before):
        ratios = sorted(one["before"][name] / one["now"][name] for one in rounds)
        print(f"{name:38}{median(ratios):.2f} x  {ratios[0]:.2f} to {ratios[-1]:.2f}")
        slowest = min(slowest, median(ratios))
    for when, mine, other in (("before", before, now), ("now", now, before)):
        if alone := [name for name in mine if name not in other]:
            print(f"{when} alone: {'; '.join(alone)}")
    sys.exit(slowest * SLOWER < 1)


def measured(root: Path, options: list[str]) -> dict[str, float]:
    """The quickest seconds of each row of a tree's `segue bench`."""
    command = [sys.executable, "-m", "segue.cli.main", "bench", "--json", "--device", "cpu", *options]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"segue bench in {root} failed: {done.stderr.strip().splitlines()[-1:]}")
    rows = json.loads(done.stdout)["stages"]
    return {
        row["name"] + (f", objects: {row['objects']}" if row["objects"] is not None else ""): min(row["seconds"])
        for row in rows
    }


if __name__ == "__main__":
    main()
