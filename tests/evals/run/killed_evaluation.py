"""Kills `segue evaluate` at random touches of its folder, twice, lets it go on, and prints what differs from peace.

python killed_evaluation.py DATA ROOT SEED: runs in children that are forked, because starting Python takes longer than
the runs do; a child that is to die does so without a word at its n-th touch of the output folder, or after n bytes of
its rows, so that lines are torn too. Prints how often it killed.
"""

import os
import random
import signal
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers of the tests of evaluation

from asked import Bright

from segue import files, loading
from segue.cli.main import main

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "os.truncate"}
APART = {"timings.json"}


def kill_at(touch: int, out: Path) -> None:
    """Make this process die just before its n-th touch of the folder, or in the middle of its n-th line."""
    touches = count(1)

    def hook(event: str, arguments: tuple) -> None:
        if event in TOUCHES and str(arguments[0]).startswith(str(out)) and next(touches) == touch:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def tear_at(number: int) -> None:
    """Make this process die when half of its n-th line is on the disk."""
    lines, append = count(1), files.append

    def torn(path: Path, line: bytes) -> None:
        if next(lines) == number:
            append(path, line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, line)

    from segue.evals.run import rows

    rows.append = torn


def run(data: Path, out: Path) -> int:
    words = ["evaluate", "demo", "--on", str(data), "--phrase", "square", "--output", str(out)]
    try:
        main([*words, "--json"])
    except SystemExit as leaving:
        return int(leaving.code or 0)


def run_child(data: Path, out: Path, touch: int | None = None, line: int | None = None) -> int | None:
    """The exit code of a run in a child; None if it was killed."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if touch is not None:
            kill_at(touch, out)
        if line is not None:
            tear_at(line)
        os._exit(run(data, out))
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def content(out: Path) -> dict[str, bytes]:
    """Every file below a folder but those of timings and of rows, whose spec is that in which they were asked."""
    found = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in APART)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found if path.suffix != ".jsonl"}


if __name__ == "__main__":
    loading.load = lambda *_, **__: Bright()
    data, root, rng = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
    # in this process, so that the children find imported what is imported late
    if run(data, root / "peace") != 0:
        sys.exit("the run left in peace fails")
    expected, kills = content(root / "peace"), 0
    for case in range(int(sys.argv[4])):
        out = root / f"killed-{case}"
        kills += run_child(data, out, line=rng.randrange(1, 4)) is None
        kills += run_child(data, out, touch=rng.randrange(1, 25)) is None
        if run_child(data, out) != 0:
            sys.exit(f"case {case} does not go on")
        found = content(out)
        wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if wrong:
            sys.exit(f"case {case} differs in {sorted(wrong)}")
    sys.stdout.write(f"{kills}\n")
