"""Starts `segue ...` and scripts as processes of their own in which the libraries are imported already.

Importing them takes a process seconds. Python's fork server does it once for each worker of pytest; what it forks has
its own folder, environment and streams, and imports Segue anew, so that PYTHONPATH may name another copy. There is one
such server in a process, whoever asks for it, and what it has imported is settled when it starts: `start` comes first.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

MODELS = ("clip", "internvl", "llama", "qwen2", "qwen2_5_vl", "qwen3", "qwen3_vl", "sam2", "sam2_video")
LIBRARIES = [
    "segue.features",  # for the writers that tests/features kill
    *("accelerate", "av", "peft", "pycocotools.mask", "rich.console", "typer", "transformers.modeling_utils"),
    *(f"transformers.models.{name}.modeling_{name}" for name in MODELS),
]


def start() -> None:
    """Start the fork server of this process."""
    multiprocessing.set_forkserver_preload(LIBRARIES)
    forkserver.ensure_running()


def run(*words: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` gives for a `segue` line or a script with its arguments, with its output as text."""
    server = multiprocessing.get_context("forkserver")
    given = [str(word) for word in words]
    with TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = server.Process(target=_begin, args=(given, streams, cwd or Path.cwd(), env or dict(os.environ)))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(given, process.exitcode, *(stream.read_text("utf-8") for stream in streams))


def _begin(words: list[str], streams: list[Path], folder: Path, environment: dict[str, str]) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.partition(".")[0] == "segue"]:
        del sys.modules[name]
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = words
    if words[0] == "segue":
        from segue.cli.main import main

        main(words[1:])
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
