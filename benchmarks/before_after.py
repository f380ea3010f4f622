"""Did anything become slower: `segue bench` of another commit and of this tree, in turns.

    python benchmarks/before_after.py COMMIT [--rounds 3] [-- --architecture Sa2VA-1B --frames 5 --repeats 1]

The commit is checked out beside, and both are run as a user runs them, with the libraries of this environment; what
stands behind `--` goes to `segue bench`. Told are the quickest seconds of all rounds for every row that both know, and
before / now: above 1 is quicker now. Rows that only one of them knows are named.

The exit code is 1 if a row takes a fifth longer now.
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
    seconds: dict[str, dict[str, float]] = {"before": {}, "now": {}}
    with TemporaryDirectory() as scratch:
        tree = Path(scratch) / "before"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "--quiet", "--detach", tree, settings.commit], check=True)
        try:
            for number in range(settings.rounds):
                for when, root in (("before", tree), ("now", HERE)):
                    print(f"round {number + 1} of {settings.rounds}, {when}", file=sys.stderr)
                    for name, found in measured(root, settings.bench).items():
                        seconds[when][name] = min(found, seconds[when].get(name, found))
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", tree], check=True)
    before, now = seconds["before"], seconds["now"]
    both = [name for name in now if name in before]
    print(f"\n{'CPU seconds':38}  before     now  before / now")
    for name in both:
        print(f"{name:38}{before[name]:8.4f}{now[name]:8.4f}  {before[name] / now[name]:.2f} x")
    for when, other in (("before", now), ("now", before)):
        if alone := [name for name in seconds[when] if name not in other]:
            print(f"{when} alone: {'; '.join(alone)}")
    sys.exit(any(now[name] > SLOWER * before[name] for name in both))


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
