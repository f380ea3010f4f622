"""Prints the files that one `segue segment` of an image goes through, from the command to the mask on the disk.

python tests/house/trace_call.py: a file counts if a function of it is called in a second run in one process, so that
what only importing does is left out. Lines are `part file`, in the order of the first call; the parts are `load` (the
model comes into memory), `engine` (from `Engine` to the mask) and `command` (all else). A file that several parts go
through counts for the first of engine, load, command.
"""

import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from PIL import Image

import segue
from segue import loading
from segue.cli.main import main
from segue.engine import Engine
from segue.synth import scene

ROOT = f"{Path(segue.__file__).parent}/"
PARTS = ("engine", "load", "command")


def run(folder: Path) -> None:
    words = ["segment", str(folder / "scene.png"), "the thing on the left", "--output", str(folder / "out")]
    try:
        main([*words, "--overwrite"])
    except SystemExit as leaving:
        if leaving.code:
            raise


def part_of(frame: FrameType | None, entries: dict[object, str]) -> str:
    """The part that a call belongs to: that of the nearest entry among its callers."""
    while frame is not None:
        if (part := entries.get(frame.f_code)) is not None:
            return part
        frame = frame.f_back
    return "command"


def traced(folder: Path) -> dict[str, set[str]]:
    """The parts that go through each file, in the order of the first call."""
    entries: dict[object, str] = {loading.load.__code__: "load"}
    entries |= {Engine.run.__wrapped__.__code__: "engine", Engine.segment.__code__: "engine"}
    found: dict[str, set[str]] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(ROOT):
            found.setdefault(file.removeprefix(ROOT), set()).add(part_of(frame, entries))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run(folder)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(scene(0, 0).frames[0]).save(folder / "scene.png")
        run(folder)
        for file, parts in traced(folder).items():
            sys.stdout.write(f"{next(part for part in PARTS if part in parts)} {file}\n")
