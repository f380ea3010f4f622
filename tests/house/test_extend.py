"""docs/extend.md, followed word for word on a copy of the package: one file and one line for each thing.

A python block with a title is a new file; a diff block adds its lines that begin with + after the line above them;
other python blocks and the lines of bash blocks are run, with the package so changed.
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import warm

FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def patched(text: str, diff: str) -> str:
    """A file's text with the added lines of a diff behind the one line of context above them."""
    context, *added = diff.splitlines()
    assert context.startswith(" ") and all(line.startswith("+") for line in added)
    assert text.count(f"{context[1:]}") == 1, f"{context!r} stands there {text.count(context[1:])} times"
    lines = "\n".join(line[1:] for line in added)
    return text.replace(context[1:], f"{context[1:]}\n{lines}\n", 1)


def test_a_dataset_a_benchmark_a_command_and_a_family_are_a_file_and_a_line_each(root, tmp_path, monkeypatch):
    shutil.copytree(root / "src", tmp_path / "src", copy_function=os.symlink, ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / "tests").symlink_to(root / "tests")
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
            Path("block.py").write_text(body, encoding="utf-8")
        lines = {"bash": body.splitlines(), "python": [] if title else ["block.py"]}.get(language, [])
        for words in map(shlex.split, lines):
            if words[0] == "cp":
                shutil.copyfile(*words[1:])
                continue
            run = warm.run(*words, env=environment)
            assert run.returncode == 0, f"{words}\n{run.stdout}{run.stderr}"
            printed += run.stdout + run.stderr
    assert re.search(r"object 1: [\d,]+ pixels", printed) and "Sure." in printed
    assert Path("scores/dots_test/report.json").is_file()
