"""docs/extend.md, followed word for word on a copy of the package: one file and one line for each thing.

A python block with a title is a new file; a diff block adds its lines that begin with + after the line above them;
other python blocks are executed and the lines of bash blocks are run, with the package so changed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def patched(text: str, diff: str) -> str:
    """A file's text with the added lines of a diff behind the one line of context above them."""
    context, *added = diff.splitlines()
    assert context.startswith(" ") and all(line.startswith("+") for line in added)
    assert text.count(f"{context[1:]}") == 1, f"{context!r} stands there {text.count(context[1:])} times"
    lines = "\n".join(line[1:] for line in added)
    return text.replace(context[1:], f"{context[1:]}\n{lines}\n", 1)


def test_a_dataset_a_benchmark_and_a_command_are_a_file_and_a_line_each(root, tmp_path, monkeypatch):
    shutil.copytree(root / "src", tmp_path / "src", copy_function=os.symlink, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    printed = ""
    for language, title, body in FENCE.findall((root / "docs" / "extend.md").read_text(encoding="utf-8")):
        if title:
            path = tmp_path / title
            text = body if language == "python" else patched(path.read_text(encoding="utf-8"), body)
            assert path.exists() == (language == "diff")
            path.unlink(missing_ok=True)
            path.write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(body, "extend.md", "exec"), {"__name__": "__page__"})  # noqa: S102
        for line in body.splitlines() if language == "bash" else ():
            command = [sys.executable, "-c", "from segue.cli.main import main; main()", *shlex.split(line)[1:]]
            run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
            printed += run.stdout + run.stderr
    assert re.search(r"object 1: [\d,]+ pixels", printed)
    assert Path("scores/dots_test/report.json").is_file()
