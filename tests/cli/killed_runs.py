"""Kills `segue segment` at every step it takes on the disk, lets it go on, and compares with a run left in peace.

python killed_runs.py INPUT ROOT FIRST STEP: kills at the FIRST touch of the output folder, then at FIRST + STEP and
so on, each time into a fresh folder under ROOT, until a run ends before it is killed; then kills runs into one folder
over and over, which holds results of what an input was before. Prints how often it killed; exits with a message if
anything was lost, done twice or left lying about. Children are forked, because starting Python takes longer than the
runs do.
"""

import os
import re
import signal
import sys
from itertools import count
from pathlib import Path

import fake_engine
import fake_store
from PIL import Image

import segue
from segue.cli.main import main

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "os.truncate"}
SECONDS = re.compile(rb'"seconds": [0-9.e-]+,\n?')


def kill_at(touch: int, out: Path) -> None:
    """Make this process die without a word just before its n-th touch of the folder."""
    touches = count(1)

    def hook(event: str, arguments: tuple) -> None:
        is_touch = event in TOUCHES and str(arguments[0]).startswith(str(out))
        if is_touch and next(touches) == touch:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(source: str, out: Path) -> int:
    """The exit code of a run in this process."""
    try:
        main(
            [
                "segment",
                source,
                "bright",
                "dark",
                "-o",
                str(out),
                "--formats",
                "png,coco,overlay,logits",
            ]
        )
    except SystemExit as leaving:
        return int(leaving.code or 0)


def run_child(source: str, out: Path, touch: int | None = None) -> int | None:
    """The exit code of a run in a child; None if it was killed, which it is at a touch of the folder, if given."""
    child = os.fork()
    if child == 0:
        if touch is not None:
            kill_at(touch, out)
        os._exit(run(source, out))
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def content(out: Path) -> dict[str, bytes]:
    """Every file below a folder, timings aside; a hidden one is a leftover and spoils the comparison."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {path.relative_to(out).as_posix(): SECONDS.sub(b"", path.read_bytes()) for path in files}


def finished(out: Path) -> dict[Path, int]:
    """The results that can be seen, and the inode of each, which changes when it is done again."""
    return {path: path.stat().st_ino for path in out.glob("[!.]*/result.json")}


def check(source: str, out: Path, expected: dict[str, bytes], touch: int) -> None:
    before = finished(out)
    code = run_child(source, out)
    found = content(out)
    wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    if code != 2 or wrong:
        sys.exit(f"killed at touch {touch}, exit code {code}, differs in {sorted(wrong)}")
    if not before.items() <= finished(out).items():
        sys.exit(f"killed at touch {touch}: a finished input was done again")


if __name__ == "__main__":
    sys.modules["segue.engine"] = sys.modules["segue.loading"] = segue.engine = segue.loading = fake_engine
    source, root, first, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    # In this process, so that the children find imported what is imported late.
    if run(source, root / "whole") != 2:
        sys.exit("the run left in peace does not end with exit code 2")
    expected = content(root / "whole")
    kills = again = 0
    for touch in count(first, step):
        out = root / f"killed-{touch}"
        if run_child(source, out, touch) is not None:
            break
        check(source, out, expected, touch)
        kills += 1
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in fake_store.folder(source).glob("*.png")}
    for path in before:
        Image.new("RGB", (9, 9)).save(path)
    run(source, root / "often")  # so that there are results to replace
    for path, (data, time) in before.items():
        path.write_bytes(data)
        os.utime(path, ns=(time, time))
    for touch in count(first, step):
        if run_child(source, root / "often", touch) is not None:
            break
        again += 1
    check(source, root / "often", expected, touch)
    sys.stdout.write(f"{kills} {again}\n")
