"""The notebooks run, cell by cell, in a folder that starts empty: Python as it stands, lines with `!segue` in front as
commands. They hold no outputs, so that nothing in them can be out of date."""

import ast
import json
import shlex
from pathlib import Path

import pytest
import warm

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def execute(cell: str, names: dict) -> None:
    """Run a cell; a value that ends it is asked for the forms in which notebooks show it."""
    commands = [line[1:] for line in cell.splitlines() if line.startswith("!segue ")]
    if commands:
        assert len(commands) == len(cell.splitlines()), "a cell is commands or Python"
        for command in commands:
            run = warm.run(*shlex.split(command))
            assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        return
    body = ast.parse(cell).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        assert "<img" in value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)


def with_speed(path: Path) -> object:
    """Commands start anew each time, which makes their notebooks slow."""
    is_slow = any(cell.startswith("!segue") for cell in cells(path))
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("path", [with_speed(path) for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__notebook__"}
    for cell in cells(path):
        execute(cell, names)


def test_notebooks_hold_no_outputs():
    assert len(NOTEBOOKS) == 5
    for path in NOTEBOOKS:
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in found), path.name
